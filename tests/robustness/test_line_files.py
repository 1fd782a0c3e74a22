"""Files of lines: prompts of --batch, HellaSwag, LAMBADA."""

import json
from pathlib import Path

from hunting import Hunt
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, json_lines
from shares import share

ENDINGS = [" saw a bird.", " ran.", " rained on old hills.", " sat."]
EXAMPLE = {
    "ind": 3, "activity_label": "Cats", "ctx": "the cat", "ctx_a": "the cat", "ctx_b": "it",
    "endings": ENDINGS, "label": 2, "split": "val",
}  # fmt: skip
SCORES = ("evaluate", "m", "--block-size", "16")


def tried(hunt: Hunt, kind: str, command: tuple[str, ...], wide: Path, content: bytes) -> None:
    """The command on `d/lines.jsonl`."""
    place = hunt.place()
    (place / "m").symlink_to(wide)
    (place / "d").mkdir()
    (place / "d" / "lines.jsonl").write_bytes(content)
    outputs = [place / "out" / name for name in ("hellaswag-lecture.jsonl", "lambada.jsonl")]
    hunt.check(kind, command, cwd=place, inputs=place / "d", about=content[:900], outputs=outputs)


@share(0.4)
@given(
    content=json_lines([EXAMPLE, EXAMPLE | {"ind": 4, "label": 0}, EXAMPLE]),
    more=st.sampled_from(((), ("--limit", "1"), ("--details", "out"), ("--scoring", "harness"))),
)
def test_hellaswag(content: bytes, more: tuple[str, ...], hunt: Hunt, wide: Path) -> None:
    command = (*SCORES, "--hellaswag", "d/lines.jsonl", *more)
    tried(hunt, "hellaswag", command, wide, content)


@share(0.3)
@given(
    content=json_lines([{"text": "the cat saw a bird"}, {"text": "it rained on old hills"}]),
    more=st.sampled_from(((), ("--limit", "1"), ("--details", "out"), ("--json",))),
)
def test_lambada(content: bytes, more: tuple[str, ...], hunt: Hunt, wide: Path) -> None:
    tried(hunt, "lambada", (*SCORES, "--lambada", "d/lines.jsonl", *more), wide, content)


BATCH = ("sample", "--model", "m", "--max-length", "8", "--batch", "d/lines.jsonl")
PROMPTS = [{"prompt": "the cat"}, {"prompt": ""}, {"prompt": "it rained on", "id": 7}]
DONE = [
    {"line": 1, "prompt": "the cat", "tokens": [1169, 3797, 11], "text": "the cat,"},
    {"line": 3, "prompt": "it rained on", "tokens": [270], "text": "it"},
]


@share(0.4)
@given(content=json_lines(PROMPTS))
def test_batch(content: bytes, hunt: Hunt, wide: Path) -> None:
    tried(hunt, "batch", (*BATCH, "--output", "lines.out"), wide, content)


@share(0.3)
@given(content=st.one_of(json_lines(DONE), damaged(json.dumps(DONE[0]).encode())))
def test_batch_begun(content: bytes, hunt: Hunt, wide: Path) -> None:
    """What an earlier run of the same batch left, mutated."""
    place = hunt.place()
    (place / "m").symlink_to(wide)
    (place / "d").mkdir()
    prompts = "".join(json.dumps(prompt) + "\n" for prompt in PROMPTS)
    (place / "d" / "lines.jsonl").write_text(prompts)
    (place / "lines.out").write_bytes(content)
    command = (*BATCH, "--output", "lines.out")
    hunt.check("batch begun", command, cwd=place, inputs=place / "d", about=content[:900])
