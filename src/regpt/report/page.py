"""From values to a page: page.html, one self-contained file that asks nobody for anything."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from regpt.system.plot import Chart, short, svg


def picture(chart: Chart, *, wide: bool) -> Markup:
    """A chart as SVG, which is markup; everything else in a page is text."""
    width, height = (760, 300) if wide else (520, 260)
    return Markup(svg(chart, width=width, height=height))


def base64_text(data: bytes) -> str:
    """Bytes as an address inside the page holds them."""
    return base64.b64encode(data).decode("ascii")


def render(**values: Any) -> bytes:
    """The page of these values: a report if they have `runs`, else probabilities of a text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["picture"] = picture
    environment.filters |= {"short": short, "base64": base64_text}
    return environment.get_template("page.html").render(values).encode("utf-8", "replace")
