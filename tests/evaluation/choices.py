"""Made examples in the released formats, and a slow plain scorer for them."""

import json
import random
import re
from pathlib import Path
from typing import Any

import torch

TEXT = """man woman roof skis cube tiles water dog kitchen knife bread river he she they slowly
then puts takes opens a the on in with of red old piece café naïve 3 tbsp."""
WORDS = TEXT.split()


def sentence(generator: random.Random, low: int, high: int) -> str:
    words = generator.choices(WORDS, k=generator.randint(low, high))
    return " ".join(words) + generator.choice([".", "!", ", then stops.", ""])


def made_example(number: int, generator: random.Random) -> dict[str, Any]:
    """ActivityNet's form, and WikiHow's with its brackets and empty ctx_b."""
    if number % 2:
        ctx_a = sentence(generator, 4, 20).capitalize()
        ctx_b = generator.choice(["he", "the woman", "a man in red"])
        label = "Roof shingle removal"
        endings = [sentence(generator, 2, 18) for _ in range(4)]
    else:
        title = f"How to {sentence(generator, 2, 4)}"
        ctx_a = f"[header] {title} [title] {sentence(generator, 3, 8).capitalize()}  [step]"
        ctx_a += f" {sentence(generator, 5, 25)}"
        ctx_b, label = "", "Food and Entertaining"
        endings = [
            f"{sentence(generator, 3, 12)} [substeps] {sentence(generator, 2, 9)}" for _ in range(4)
        ]
    ctx = f"{ctx_a} {ctx_b}" if ctx_b else ctx_a
    return {
        "ind": 10 * number, "activity_label": label, "ctx_a": ctx_a, "ctx_b": ctx_b, "ctx": ctx,
        "split": "val", "split_type": "indomain", "label": generator.randrange(4),
        "endings": endings, "source_id": f"activitynet~v_{number}",
    }  # fmt: skip


def write_examples(path: Path, count: int) -> list[dict[str, Any]]:
    generator = random.Random(5)
    examples = [made_example(number, generator) for number in range(count)]
    text = "".join(json.dumps(example) + "\n" for example in examples)
    path.write_text(text, encoding="utf-8")
    return examples


def ending_nats(peer: Any, context: list[int], ending: list[int]) -> tuple[float, bool]:
    """One row, a plain softmax: the ending's loss, and whether it is greedy."""
    ids = torch.tensor([context + ending])
    with torch.no_grad():
        output = peer(input_ids=ids, logits_to_keep=len(ending) + 1)
    logits, tokens = output.logits[0, :-1], torch.tensor(ending)
    logs = logits.double().log_softmax(-1).gather(1, tokens[:, None])
    return -logs.sum().item(), torch.equal(logits.max(-1).indices, tokens)


def harness_text(text: str) -> str:
    text = text.strip()
    text = text.replace(" [title]", ". ")
    text = re.sub("\\[.*?\\]", "", text)
    return text.replace("  ", " ")


def slow_choices(
    peer: Any, encode: Any, example: dict[str, Any], scoring: str
) -> tuple[int, int, list[float]]:
    """What the rules say, written out: choice by sum, choice by normalised sum, the sums."""
    nats, lengths = [], []
    for ending in example["endings"]:
        if scoring == "lecture":
            context, tokens = encode(example["ctx"]), encode(" " + ending)
            lengths.append(len(tokens))
        else:
            query = example["activity_label"] + ": "
            query += example["ctx_a"] + " " + example["ctx_b"].capitalize()
            query, ending = harness_text(query), harness_text(ending)
            blanks = len(query) - len(query.rstrip())
            head = query[: len(query) - blanks]
            whole = encode(query + " " + ending)
            context = encode(head)
            tokens = whole[len(context) :]
            lengths.append(len(ending))
        nats.append(ending_nats(peer, context, tokens)[0])
    normed = [nat / length for nat, length in zip(nats, lengths, strict=True)]
    return nats.index(min(nats)), normed.index(min(normed)), nats
