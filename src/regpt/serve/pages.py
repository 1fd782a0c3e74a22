"""The pages: the files of `pages/`, each known by its name, so that no path leads anywhere else.

Plain HTML, style sheets and ES modules; nothing is built, nothing is asked of other servers. They
are open without a key: what they show they ask for themselves, with the key that a person gives.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from regpt.serve.request import ApiError

FOLDER = Path(__file__).parent / "pages"
KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


@cache
def files() -> dict[str, bytes]:
    """Every file of the pages by its name."""
    return {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in KINDS}


def answer(name: str) -> Response:
    """A file of the pages."""
    return Response(files()[name], media_type=KINDS[Path(name).suffix])


def open_paths(paths: Iterable[str]) -> frozenset[str]:
    """What needs no key: these paths of pages, and the files they are made of."""
    static = (f"/static/{name}" for name in files())
    return frozenset({"/health", *paths, *static})


def page(path: str, name: str) -> Route:
    """A page at its address."""

    async def show(request: Request) -> Response:
        return answer(name)

    return Route(path, show)


async def static(request: Request) -> Response:
    """GET /static/NAME."""
    name = request.path_params["name"]
    if name not in files():
        raise ApiError(f"the pages have no file {name[:200]!r}", status=404)
    return answer(name)


STATIC = Route("/static/{name}", static)
