"""The loss of a text: `regpt evaluate` against a plain transformers loop, on the same tokens.

    python benchmarks/evaluate.py --dtype fp32
    python benchmarks/evaluate.py --dtype bf16

Ours as the command line does it (kept pages), theirs GPT2LMHeadModel in the dtype
asked for, windows of 1024 tokens in batches, `labels` given, the mean losses added up by their
number of targets. Random weights of the 124M shape: the time does not depend on them. Prints a
table and one JSON line; the losses stand beside the times.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from regpt.bench.hardware_limits import Machine
from regpt.bench.harness import Benchmark, Job
from regpt.bench.results import Column, Row, against, usual_columns
from regpt.bench.scripts import run_script, script_options
from regpt.bench.worker import System

T = 1024


def load_ours(model: str, tokens: str, dtype: str, batch: int) -> Callable[[], dict[str, float]]:
    """`regpt evaluate`'s reading of all tokens."""
    import numpy as np

    from regpt import GPT, find_runtime
    from regpt.commands.evaluate import BATCH_TOKENS
    from regpt.core.data import ArrayDataset
    from regpt.evaluation.validation import validate

    runtime = find_runtime("auto", dtype=dtype)
    gpt = GPT.from_pretrained(model).to(runtime.device)
    size = BATCH_TOKENS[runtime.device.type]
    data = ArrayDataset(np.load(tokens))

    def call() -> dict[str, float]:
        return {"loss": validate(gpt, data, runtime, block_size=T, batch_tokens=size).loss}

    return call


def load_theirs(model: str, tokens: str, dtype: str, batch: int) -> Callable[[], dict[str, float]]:
    """The same with transformers."""
    import numpy as np
    import torch
    from transformers import GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kind = torch.float32 if dtype == "fp32" else torch.bfloat16
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpt = GPT2LMHeadModel.from_pretrained(model, dtype=kind).to(device).eval()
    ids = torch.from_numpy(np.load(tokens).astype("int64")).to(device)
    windows = ids[: len(ids) // T * T].view(-1, T)

    def call() -> dict[str, float]:
        nats = torch.zeros(())
        for rows in windows.split(batch):
            with torch.no_grad():
                nats += gpt(input_ids=rows, labels=rows).loss.cpu() * len(rows)
        return {"loss": (nats / len(windows)).item()}

    return call


def columns(machine: Machine, rows: Sequence[Row]) -> list[Column]:
    """The losses, and how many times as fast."""
    loss = Column(heading="loss", cell=lambda row: f"{row.facts['loss']:.6f}")
    return [*usual_columns(), loss, against(rows, "transformers", rows[0].dtype)]


def main() -> None:
    """Measure and print."""
    parser = script_options(__doc__, seconds=3600.0, rounds=3)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--windows", type=int, default=8, help=f"of {T} tokens")
    parser.add_argument("--batch", type=int, default=4, help="windows per batch of transformers")
    given = parser.parse_args()

    import numpy as np
    import torch

    from regpt import GPT, GPTConfig, get_tokenizer
    from regpt.datasets.corpora import load_corpus

    bench = Benchmark(
        name="evaluate", seconds=given.seconds, rounds=given.rounds, columns=columns,
        threads=given.threads, out=given.out, json=True,
    )  # fmt: skip
    with bench.running(), tempfile.TemporaryDirectory() as folder:
        bench.tell("writing a model and its tokens")
        torch.manual_seed(0)
        GPT(GPTConfig()).save_pretrained(f"{folder}/model")
        tokens = load_corpus(["pydocs"]).tokens(get_tokenizer())[: given.windows * T + 1]
        np.save(f"{folder}/tokens.npy", tokens)
        settings = {
            "model": f"{folder}/model",
            "tokens": f"{folder}/tokens.npy",
            "dtype": given.dtype,
            "batch": given.batch,
        }
        systems = [
            System(name=name, dtype=given.dtype, load=f"{Path(__file__)}:{load}", ours=ours,
                   settings=settings)
            for name, load, ours in (
                ("transformers", "load_theirs", False),
                ("regpt", "load_ours", True),
            )
        ]  # fmt: skip
        job = Job(name=f"loss-{given.windows}x{T}", tokens=given.windows * T)
        bench.measure(systems, job)


if __name__ == "__main__":
    run_script(main)
