"""regpt against transformers, on this machine: every number and every token.

    with open_pairs("random", device=torch.device("cpu")) as bench:
        for check in run(bench, seeds=5):
            ...

Nothing here is compared with a stored text: torch's version, the processor and the device change
the numbers, so a golden string would fail on sound machines and prove little on the rest. Both
sides read one directory (sides.py) and run, here and now: their numbers (tensors.py), their texts
(text.py, with the references in references.py), and what is published about the released weights
(facts.py). Where two texts part, causes.py finds out why. A check is a value (report.py); the
command prints them.
"""

from regpt.parity.plan import Bench, open_pairs, run
from regpt.parity.report import Check, Status
from regpt.parity.text import Provocation

__all__ = ["Bench", "Check", "Provocation", "Status", "open_pairs", "run"]
