"""Why the quickstart's validation loss is above its training loss: other text, or learnt by heart?

Three parts of `pydocs` are kept from one training: its last tenth, as in the quickstart; of what is
left, every twelfth document; and of what is left then, every twelfth piece of 4,000 characters. The
pieces stand among text that is trained on, the documents are of its kinds, the end may be of
another. All are scored while the quickstart's recipe trains on the rest, beside a part of the rest
itself, each token with the same context.

    python benchmarks/held_out.py

Prints a table in Markdown, in nats per token.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from regpt.system.malloc import keep_pages

keep_pages()  # as the command line does, before torch is loaded

from regpt.core.data import ArrayDataset  # noqa: E402
from regpt.core.tokenizer import get_tokenizer  # noqa: E402
from regpt.datasets.corpora import Corpus, load_corpus  # noqa: E402
from regpt.evaluation.validation import validate  # noqa: E402
from regpt.system.runtime import find_runtime  # noqa: E402
from regpt.training.build import build  # noqa: E402
from regpt.training.distributed import World  # noqa: E402
from regpt.training.presets import quickstart  # noqa: E402
from regpt.training.replay import advance  # noqa: E402

EACH = 12
PIECE = 4_000


def take_out(parts: Sequence[str]) -> tuple[list[str], list[str]]:
    """All parts but every EACH-th; and those."""
    rest = [part for index, part in enumerate(parts) if index % EACH != EACH // 2]
    return rest, list(parts[EACH // 2 :: EACH])


def cut(corpus: Corpus) -> dict[str, list[str]]:
    """The parts by name, first what is trained on."""
    first, last = corpus.split(quickstart().validation_fraction)
    documents, whole = take_out(first.documents)
    pieces = [text[at : at + PIECE] for text in documents for at in range(0, len(text), PIECE)]
    rest, scattered = take_out(pieces)
    return {
        "trained on": rest,
        "its pieces": scattered,
        "its documents": whole,
        "the end": list(last.documents),
    }


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=quickstart().steps)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    parts = cut(load_corpus(["pydocs"]))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index:05}.txt" for index in range(len(parts["trained on"]))]
        for path, text in zip(paths, parts["trained on"], strict=True):
            path.write_text(text, encoding="utf-8", newline="")
        config = replace(
            quickstart(),
            data=tuple(map(str, paths)),
            validation_fraction=0.0,
            steps=arguments.steps,
            threads=arguments.threads,
        )
        runtime = find_runtime(config.device, dtype=config.dtype, threads=config.threads)
        state = build(config, runtime, World(device=runtime.device))
    parts["trained on"] = take_out(parts["trained on"])[1]
    tokenizer = get_tokenizer()
    scored = {
        name: ArrayDataset(Corpus(name, tuple(texts)).tokens(tokenizer))
        for name, texts in parts.items()
    }
    epoch = state.data.loader.plan.steps_per_epoch
    print(f"{len(state.data.loader.dataset):,} tokens trained on, {epoch} steps per epoch\n")
    print("| after |", *(f"{name}, {len(data):,} tokens |" for name, data in scored.items()))
    print("|---|" + "--:|" * len(scored))
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        while state.step < round(share * config.steps):
            advance(state)
            if sys.stderr.isatty():
                print(f"\r{state.step}/{config.steps}", end="\r", file=sys.stderr)
        losses = [
            validate(state.whole_model(), data, runtime, block_size=config.block_size).loss
            for data in scored.values()
        ]
        row = " ".join(f"{loss:.4f} |" for loss in losses)
        print(f"| {state.step} steps, {state.step / epoch:.2f} epochs | {row}", flush=True)


if __name__ == "__main__":
    main()
