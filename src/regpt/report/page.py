"""The frame of a page: one self-contained HTML file, styles and script inside, no request at all.

Everything that comes from a run or a model is text and goes through `text`; nothing of it can
become markup. A policy in the head forbids the page any connection, so that even a mistake here
could not make it load something.
"""

import base64
import html
from collections.abc import Iterable, Sequence

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

STYLE = """
:root { --ink: #1d2733; --soft: #66717f; --line: #e4e8ed; --tint: #f6f8fa; color-scheme: light }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 66rem; color: var(--ink);
  background: #fff; font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif }
h1 { font-size: 1.7rem; font-weight: 600; margin: 0 0 .2rem; letter-spacing: -.01em }
h2 { font-size: 1.15rem; font-weight: 600; margin: 2.6rem 0 .8rem }
h3 { font-size: 1rem; font-weight: 600; margin: 1.4rem 0 .4rem }
p, .soft { color: var(--soft); margin: .2rem 0 } p.note { color: #8a5300 }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .87rem; width: 100% }
th, td { text-align: left; padding: .32rem .9rem .32rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: break-word } td { max-width: 26rem }
th { font-weight: 600; color: var(--soft); overflow-wrap: normal }
td.number, th.number { text-align: right }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap }
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 1.2rem }
.charts .wide { grid-column: 1 / -1 }
@media (max-width: 48rem) { .charts { grid-template-columns: 1fr } }
figure { margin: 0; position: relative } figcaption { font-size: .87rem; font-weight: 600 }
svg { display: block; width: 100%; height: auto; overflow: visible }
svg path { vector-effect: non-scaling-stroke }
svg text { font: 11px system-ui, sans-serif; fill: #66717f }
svg text.level { paint-order: stroke; stroke: #fff; stroke-width: 4px; stroke-linejoin: round }
figcaption span { font-weight: 400; color: var(--soft) }
@media (max-width: 48rem) { body { padding: 1.2rem 1rem 3rem } svg text { font-size: 15px }
  .wide svg text { font-size: 26px } }
.legend { font-size: .82rem; color: var(--soft); display: flex; flex-wrap: wrap; gap: .1rem 1.1rem }
.legend i { display: inline-block; width: 1.1rem; vertical-align: middle; margin-right: .4rem }
.reading { position: absolute; right: 0; top: 0; font-size: .78rem; color: var(--soft);
  font-variant-numeric: tabular-nums; background: #fffd; pointer-events: none }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--tint); margin: .3rem 0;
  padding: .7rem .9rem; border-radius: 6px; font: 13px/1.5 ui-monospace, monospace }
details { margin: .6rem 0 } summary { cursor: pointer; font-weight: 600 }
.token { border-radius: 3px; padding: .12rem 0; white-space: pre-wrap; cursor: default }
.tokens { color: var(--ink); font: 17px/2 ui-monospace, monospace; overflow-wrap: anywhere }
img { max-width: 100% } code { font: .92em ui-monospace, monospace }
"""


def text(value: object) -> str:
    """Any value as text of a page."""
    return html.escape(str(value), quote=True)


def make_page(title: str, subtitle: str, body: Iterable[str], *, script: str = "") -> bytes:
    """The whole file; title and subtitle are plain text, body is markup."""
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8"/>',
        f'<meta http-equiv="Content-Security-Policy" content="{text(POLICY)}"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        f"<title>{text(title)}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        f"<h1>{text(title)}</h1>",
        f'<p class="soft">{text(subtitle)}</p>',
        *body,
        f"<script>{script}</script>" if script else "",
        "</body>",
        "</html>",
        "",
    ]
    return "\n".join(parts).encode("utf-8", "replace")


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()
) -> str:
    """A table of markup cells; the columns in `numbers` are set to the right."""
    right = set(numbers)

    def cells(tag: str, values: Sequence[str]) -> str:
        out = ""
        for column, value in enumerate(values):
            kind = ' class="number"' if column in right else ""
            out += f"<{tag}{kind}>{value}</{tag}>"
        return f"<tr>{out}</tr>"

    head = cells("th", [text(name) for name in header])
    body = "".join(cells("td", row) for row in rows)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def picture(png: bytes, description: str) -> str:
    """A picture inside the page."""
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{text(description)}" src="data:image/png;base64,{data}"/>'
