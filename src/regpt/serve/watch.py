"""The server of `regpt watch`: the page of one run, and no model."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from regpt.serve import pages
from regpt.serve.answers import HANDLERS
from regpt.serve.runs import Runs
from regpt.serve.security import Security
from regpt.serve.server import HttpServer, http_server


def make_watch(
    run: Path, *, host: str, api_key: str | None, ready: Callable[[], None] = lambda: None
) -> HttpServer:
    """A server that shows a run."""
    runs = Runs(run)
    name = run.resolve().name

    async def home(request: Request) -> Response:
        return RedirectResponse(f"runs/{quote(name)}")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def about(request: Request) -> Response:
        return JSONResponse({"model": None, "runs": [name]})

    own = [Route("/", home), Route("/health", health), Route("/about", about)]
    app = Starlette(routes=[*own, *runs.routes(), pages.STATIC], exception_handlers=HANDLERS)
    app.router.redirect_slashes = False
    opened = pages.open_paths(["/", *runs.paths()])
    checked = Security(app, host=host, api_key=api_key, open_paths=opened)
    return http_server(checked, close=runs.close, ready=ready)
