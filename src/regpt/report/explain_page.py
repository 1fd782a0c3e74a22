"""What `explain` found, as a page with colour by probability, and attention maps as pictures."""

import io
from collections.abc import Sequence

from torch import Tensor

from regpt.core.tokenizer import END_OF_TEXT, Tokenizer
from regpt.evaluation.explain import Place
from regpt.report.page import make_page, picture, table, text

MOST_LABELS = 48
"""A map of more positions is drawn without its tokens."""


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


def describe(tokenizer: Tokenizer, alternatives: Sequence[tuple[int, float]]) -> str:
    """Alternatives in one line."""
    pairs = (f"{shown(tokenizer, token)!r} {percent(chance)}" for token, chance in alternatives)
    return "  ".join(pairs)


def spaced(alternatives: str) -> str:
    """Alternatives as markup that keeps the blanks between them."""
    return text(alternatives).replace("  ", " &emsp;")


def explain_page(
    places: Sequence[Place],
    tokenizer: Tokenizer,
    *,
    model: str,
    maps: Sequence[tuple[str, bytes]] = (),
) -> bytes:
    """The page: the text in colours, a table, the pictures given as (description, PNG)."""
    pieces, rows = [], []
    for number, place in enumerate(places):
        likely = describe(tokenizer, place.alternatives)
        if place.token is None or place.probability is None:
            rows.append([str(number), "<i>next</i>", "", "", spaced(likely)])
            continue
        piece = shown(tokenizer, place.token)
        title = f"{percent(place.probability)}, rank {place.rank}\ninstead: {likely}"
        style = f"background: {color(place.probability)}"
        break_after = "<br/>" * tokenizer.decode([place.token]).count("\n")
        pieces.append(
            f'<span class="token" style="{style}" title="{text(title)}">{text(piece)}</span>'
            + break_after
        )
        chance = f'<span class="token" style="{style}">{percent(place.probability)}</span>'
        rows.append(
            [str(number), f"<code>{text(repr(piece))}</code>", chance, str(place.rank),
             spaced(likely)]
        )  # fmt: skip
    columns = ("position", "token", "probability", "rank", "most likely")
    body = [
        f'<p class="tokens">{"".join(pieces)}</p>',
        "<p>The greener, the more likely the model found it; point at a token for what else.</p>",
        "<h2>Position by position</h2>",
        table(columns, rows, numbers=(2, 3)),
    ]
    for description, png in maps:
        body += [f"<h2>{text(description)}</h2>", picture(png, description)]
    return make_page("What the model expected", f"{model}, read after an end-of-text", body)


def draw_attention(weights: Tensor, labels: Sequence[str], *, title: str) -> bytes:
    """A PNG of (heads, T, T) attention: rows look, columns are looked at."""
    from matplotlib.figure import Figure  # half a second: only when a picture is drawn

    heads, T = len(weights), len(labels)
    columns = min(heads, 4)
    rows = -(-heads // columns)
    side = 7.5 if heads == 1 else 3.2
    figure = Figure(figsize=(side * columns, side * rows + 0.4), dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[heads:]:
        axes.set_axis_off()
    for head, axes in zip(range(heads), grid.flat, strict=False):
        axes.imshow(weights[head].numpy(), vmin=0, cmap="Blues", aspect="equal")
        axes.spines[:].set_visible(False)
        if heads > 1:
            axes.set_title(f"head {head}", fontsize=9)
        if heads == 1 and T <= MOST_LABELS:
            axes.set_xticks(range(T), labels, rotation=90, fontsize=8, parse_math=False)
            axes.set_yticks(range(T), labels, fontsize=8, parse_math=False)
        else:
            axes.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
