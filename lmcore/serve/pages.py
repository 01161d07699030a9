"""The files of a page, which are served as they are: HTML, style, scripts and pictures."""

from collections.abc import Iterable
from functools import partial
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["page_routes"]

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Ending of a file's name -> its type."""


def page_routes(packages: Iterable[str]) -> list[Route]:
    """Return a route for each file in the folder `page` of some packages, `index.html` at `/`.

    Args:
        packages: where to look; of two files with one name, the first package's is served.
    """
    files: dict[str, Traversable] = {}
    for package in packages:
        for file in resources.files(package).joinpath("page").iterdir():
            if PurePath(file.name).suffix in TYPES:
                files.setdefault("/" if file.name == "index.html" else f"/{file.name}", file)
    return [Route(path, partial(_send, file), methods=["GET"]) for path, file in sorted(files.items())]


async def _send(file: Traversable, request: Request) -> Response:
    kind = TYPES[PurePath(file.name).suffix]
    return Response(file.read_bytes(), media_type=kind, headers={"Cache-Control": "no-cache"})
