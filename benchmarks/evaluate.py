"""The loss of a text: `regpt evaluate` against a plain transformers loop, on the same tokens.

    python benchmarks/evaluate.py --dtype fp32
    python benchmarks/evaluate.py --dtype bf16

Each side is a process of its own, as a person would start it: ours as the command line does (kept
pages, packed matrices), theirs GPT2LMHeadModel in the dtype asked for, windows of 1024 tokens in
batches, `labels` given, the mean losses added up by their number of targets. The sides take turns
and neither ever computes while the other does. Random weights of the 124M shape: the time does not
depend on them. Prints a table and one JSON line; the losses stand beside the times.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SIDES = ("transformers", "regpt")
T = 1024


def prepare_ours(directory: str, dtype: str, batch: int) -> Callable[[Any], float]:
    """A function from tokens to their loss."""
    from regpt.system.malloc import keep_pages

    keep_pages()
    from regpt import GPT, find_runtime
    from regpt.commands.evaluate import BATCH_TOKENS
    from regpt.core.data import ArrayDataset
    from regpt.evaluation.validation import validate

    runtime = find_runtime("auto", dtype=dtype)
    model = GPT.from_pretrained(directory).to(runtime.device)
    size = BATCH_TOKENS[runtime.device.type]

    def loss(tokens: Any) -> float:
        data = ArrayDataset(tokens)
        return validate(model, data, runtime, block_size=T, batch_tokens=size).loss

    return loss


def prepare_theirs(directory: str, dtype: str, batch: int) -> Callable[[Any], float]:
    """The same with transformers."""
    import torch
    from transformers import GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kind = torch.float32 if dtype == "fp32" else torch.bfloat16
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = GPT2LMHeadModel.from_pretrained(directory, dtype=kind).to(device).eval()

    def loss(tokens: Any) -> float:
        ids = torch.from_numpy(tokens.astype("int64")).to(device)
        nats = torch.zeros(())
        windows = ids[: len(ids) // T * T].view(-1, T)
        for start in range(0, len(windows), batch):
            rows = windows[start : start + batch]
            with torch.no_grad():
                nats += model(input_ids=rows, labels=rows).loss.cpu() * len(rows)
        return (nats / len(windows)).item()

    return loss


def serve(side: str, directory: str, dtype: str, batch: int, connection: Connection) -> None:
    """A side's process: for each array of tokens, the seconds and the loss."""
    prepare = prepare_ours if side == "regpt" else prepare_theirs
    loss = prepare(directory, dtype, batch)
    connection.send("ready")
    while (tokens := connection.recv()) is not None:
        clock = time.perf_counter()
        value = loss(tokens)
        connection.send((time.perf_counter() - clock, value))


def measure(directory: str, tokens: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Warm both sides up on two batches, then let them take turns."""
    context = multiprocessing.get_context("spawn")
    ends, seconds, losses = {}, {side: [] for side in SIDES}, {}
    for side in SIDES:
        ours, theirs = context.Pipe()
        parameters = (side, directory, arguments.dtype, arguments.batch, theirs)
        context.Process(target=serve, args=parameters, daemon=True).start()
        assert ours.recv() == "ready"
        ends[side] = ours
        ours.send(tokens[: arguments.batch * T + 1])
        ours.recv()
    for _ in range(arguments.rounds):
        for side in SIDES:
            ends[side].send(tokens)
            taken, losses[side] = ends[side].recv()
            seconds[side].append(taken)
    for end in ends.values():
        end.send(None)
    return {"seconds": seconds, "losses": losses}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--windows", type=int, default=8, help=f"of {T} tokens")
    parser.add_argument("--batch", type=int, default=4, help="windows per batch of transformers")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    import numpy as np
    import torch

    from regpt import GPT, GPTConfig, get_tokenizer
    from regpt.datasets.corpora import load_corpus

    tokens = load_corpus(["pydocs"]).tokens(get_tokenizer())[: arguments.windows * T + 1]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        directory = str(Path(folder) / "model")
        GPT(GPTConfig()).save_pretrained(directory)
        found = measure(directory, np.ascontiguousarray(tokens), arguments)
    count = arguments.windows * T
    print(f"{arguments.dtype}, {count:,} tokens, context {T}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    print(f"{'':<14}{'best s':>9}{'median s':>10}{'tokens/s':>10}{'loss':>12}")
    best = {side: min(found["seconds"][side]) for side in SIDES}
    for side in SIDES:
        middle = statistics.median(found["seconds"][side])
        print(f"{side:<14}{best[side]:>9.2f}{middle:>10.2f}{count / best[side]:>10,.0f}"
              f"{found['losses'][side]:>12.6f}")  # fmt: skip
    ratio = best["transformers"] / best["regpt"]
    print(f"regpt is {ratio:.2f}x as fast")
    result = {"benchmark": "evaluate", "dtype": arguments.dtype, "tokens": count}
    print(json.dumps(result | found | {"ratio": round(ratio, 3)}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
