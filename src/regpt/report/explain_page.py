"""What `explain` found, as a page with colour by probability, and attention maps as pictures."""

from collections.abc import Sequence
from typing import Any

from regpt.core.tokenizer import END_OF_TEXT, Tokenizer
from regpt.evaluation.explain import Place
from regpt.report.page import render


def color(probability: float) -> str:
    """Pale red for the unexpected, through white, to green for the certain."""
    share = probability**0.5  # most of what happens, happens below one half
    low, middle, high = (250, 200, 195), (255, 250, 235), (190, 232, 200)
    start, stop, place = (low, middle, 2 * share) if share < 0.5 else (middle, high, 2 * share - 1)
    return "#" + "".join(
        f"{round(a + (b - a) * place):02x}" for a, b in zip(start, stop, strict=True)
    )


def shown(tokenizer: Tokenizer, token: int) -> str:
    """A token as one visible piece; a part of a character as its bytes."""
    if token == tokenizer.eot:
        return END_OF_TEXT
    data = tokenizer.decode_bytes([token])
    try:
        return data.decode("utf-8").replace("\n", "⏎").replace("\t", "⇥")
    except UnicodeDecodeError:
        return f"<{data.hex(' ')}>"


def percent(chance: float) -> str:
    """A probability with two digits that count, however small."""
    return f"{chance:.1%}" if chance >= 0.01 else f"{100 * chance:.2g}%"


def describe(tokenizer: Tokenizer, place: Place) -> dict[str, Any]:
    """A position in words: likely, and, before the end, its piece, chance, rank."""
    likely = [f"{shown(tokenizer, t)!r} {percent(chance)}" for t, chance in place.alternatives]
    if place.token is None or place.probability is None:
        return {"rank": None, "likely": likely}
    piece = shown(tokenizer, place.token)
    return {
        "piece": piece,
        "quoted": repr(piece),
        "breaks": tokenizer.decode([place.token]).count("\n"),
        "chance": percent(place.probability),
        "color": color(place.probability),
        "rank": place.rank,
        "likely": likely,
    }


def explain_page(
    places: Sequence[Place],
    tokenizer: Tokenizer,
    *,
    model: str,
    maps: Sequence[tuple[str, bytes]] = (),
) -> bytes:
    """The page: the text in colours, a table, the pictures given as (description, PNG)."""
    return render(
        title="What the model expected",
        subtitle=f"{model}, read after an end-of-text",
        tokens=[describe(tokenizer, place) for place in places],
        maps=maps,
    )


def table_lines(places: Sequence[Place], tokenizer: Tokenizer) -> list[str]:
    """The same as lines of text."""
    lines = [f"{'':>6} {'token':<18}{'probability':>11}{'rank':>7}  most likely"]
    for number, place in enumerate(places):
        found = describe(tokenizer, place)
        cells = ("(next)", "", "")
        if found["rank"]:
            cells = (found["quoted"], found["chance"], str(found["rank"]))
        piece, chance, rank = cells
        lines.append(f"{number:>6} {piece:<18}{chance:>11}{rank:>7}  {'  '.join(found['likely'])}")
    return lines
