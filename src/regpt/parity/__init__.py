"""regpt against transformers, on this machine: every number and every token.

    with open_pairs("random", device=torch.device("cpu")) as comparison:
        for check in run(comparison, seeds=5):
            ...

Nothing here is compared with a stored text: torch's version, the processor and the device change
the numbers, so a golden string would fail on sound machines and prove little on the rest. Both
sides read one directory (model_pair.py) and run, here and now: their numbers (tensors.py) and their
texts (text.py, with the references in references.py, and what is published about the released
weights). Where two texts part, diagnose.py finds out why.
"""

from regpt.parity.plan import Comparison, open_pairs, run
from regpt.parity.report import Check, Status

__all__ = ["Check", "Comparison", "Status", "open_pairs", "run"]
