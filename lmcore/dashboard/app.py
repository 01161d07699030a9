"""The web application: static files, a JSON API that only reads, and the reports, each under a strict policy.

Every answer has an ETag, so that a poll that finds nothing new costs neither transfer nor drawing.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lmcore.dashboard.curves import AXES, Curve, curve
from lmcore.dashboard.folder import Folder, join
from lmcore.dashboard.metrics import MetricsReader
from lmcore.dashboard.runs import config_differences, describe_report, describe_run, read_sample, samples_of
from lmcore.report.html import STYLE
from lmcore.serve.limits import Guard
from lmcore.serve.pages import TYPES

__all__ = ["make_app"]

MAX_RUNS = 50
"""Maximum number of runs whose configs are compared."""
MAX_READERS = 200
"""Number of runs whose rows stay in memory."""
MAX_CURVES = 1000
MAX_DESCRIPTIONS = 5000
MAX_REPORT = 32 << 20
FRESH = {"Cache-Control": "no-cache"}
"""Header of what changes: the browser asks each time."""
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
"""Reports have their style and pictures in themselves, and no script."""


def make_app(folder: Path, hosts: frozenset[str] | None) -> Starlette:
    """Make the application.

    Args:
        folder: the folder of runs; nothing outside it is read.
        hosts: names that a Host header may have; None allows all.
    """
    dashboard = Dashboard(folder)
    static = files("lmcore.dashboard") / "static"
    assets = {item.name: item.read_bytes() for item in static.iterdir() if Path(item.name).suffix in TYPES}
    assets["page.css"] = STYLE.encode()
    show = partial(_asset, assets)
    api = {
        "runs": dashboard.runs,
        "curve": dashboard.curve,
        "samples": dashboard.samples,
        "sample": dashboard.sample,
        "configs": dashboard.configs,
    }
    routes = [
        Route("/", lambda request: show(request, "index.html")),
        Route("/static/{name}", lambda request: show(request, request.path_params["name"])),
        *(Route(f"/api/{name}", partial(_answer, function)) for name, function in api.items()),
        Route("/reports/{path:path}", dashboard.report),
    ]
    guard = Middleware(Guard, api_key=None, hosts=hosts, count=lambda path, status: None)
    return Starlette(routes=routes, middleware=[guard], exception_handlers={HTTPException: _refused})


class Dashboard:
    """The API. Its methods run in threads."""

    def __init__(self, folder: Path):
        """Begin without any row in memory."""
        self.shown, self.folder = str(folder), Folder(folder)
        self.lock = Lock()
        self.readers: OrderedDict[str, MetricsReader] = OrderedDict()
        self.curves: OrderedDict[Any, dict[str, Any]] = OrderedDict()
        self.descriptions: OrderedDict[Any, dict[str, Any]] = OrderedDict()

    def runs(self, request: Request) -> Any:
        """Return all runs and reports."""
        found = self.folder.contents()
        return {
            "folder": self.shown,
            "runs": [self._described(run) for run in found.runs],
            "reports": [describe_report(self.folder, path) for path in found.reports],
        }

    def curve(self, request: Request) -> Any:
        """Return the points of one metric of one run."""
        run, query = self._run(request), request.query_params
        try:
            smoothing = float(query.get("smooth", "0"))
        except ValueError:
            smoothing = -1.0
        axis = next((axis for axis in AXES if axis == query.get("x", "step")), None)
        if axis is None or not 0 <= smoothing < 1:
            raise HTTPException(400, "x is step, tokens or time; smooth is a number from 0 to below 1")
        asked = Curve(query.get("metric", "loss"), axis, query.get("log_x") == "1", smoothing)
        reader = self._reader(run)
        reader.refresh()
        key = (reader.version, asked)
        with self.lock:
            points = self.curves.get(key)
        if points is None:
            points = curve(reader, asked)
            _keep(self.lock, self.curves, key, points, MAX_CURVES)
        return {"run": run, "metrics": reader.names(), "rejected": reader.rejected, **points}

    def samples(self, request: Request) -> Any:
        """Return the steps and files of a run's samples."""
        return samples_of(self.folder, self._run(request))

    def sample(self, request: Request) -> Any:
        """Return the text of a sample."""
        try:
            return {"text": read_sample(self.folder, self._run(request), request.query_params.get("file", ""))}
        except FileNotFoundError:
            raise HTTPException(404, "no such sample") from None

    def configs(self, request: Request) -> Any:
        """Return the fields in which the configs of runs differ."""
        names = request.query_params.getlist("run")[:MAX_RUNS]
        return config_differences(self.folder, [run for run in names if self.folder.is_run(run)])

    def report(self, request: Request) -> Response:
        """Return a report, as a page that may do nothing but show itself."""
        path = request.path_params["path"]
        try:
            if not path.endswith(".html"):
                raise FileNotFoundError(path)
            content = self.folder.read(path, MAX_REPORT)
        except FileNotFoundError:
            raise HTTPException(404, "no such report") from None
        headers = {"Content-Security-Policy": REPORT_POLICY}
        return Response(content, media_type="text/html; charset=utf-8", headers=headers)

    def _described(self, run: str) -> dict[str, Any]:
        """Return what `describe_run` does, from memory as long as the run's files stay as they are."""
        files = [join(run, name) for name in ("metrics.jsonl", "config.yaml", "run.json")]
        key = (run, *map(self.folder.signature, files))
        with self.lock:
            described = self.descriptions.get(key)
        return _keep(self.lock, self.descriptions, key, described or describe_run(self.folder, run), MAX_DESCRIPTIONS)

    def _run(self, request: Request) -> str:
        run = request.query_params.get("run", "")
        if not self.folder.is_run(run):
            raise HTTPException(404, "no such run")
        return run

    def _reader(self, run: str) -> MetricsReader:
        with self.lock:
            reader = self.readers.get(run)
        if reader is None:
            reader = MetricsReader(partial(self.folder.open, join(run, "metrics.jsonl")))
        return _keep(self.lock, self.readers, run, reader, MAX_READERS)


def _keep(lock: Lock, cache: OrderedDict, key: Any, value: Any, count: int) -> Any:
    """Return what the cache holds for a key; a new value is added, and what was not used for longest is dropped."""
    with lock:
        value = cache.setdefault(key, value)
        cache.move_to_end(key)
        while len(cache) > count:
            cache.popitem(last=False)
        return value


def _answer(function: Callable[[Request], Any], request: Request) -> Response:
    """Return a function's values as JSON; nothing but the status if the browser has them already."""
    content = json.dumps(function(request), allow_nan=False, separators=(",", ":")).encode()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=FRESH | {"ETag": tag})
    return Response(content, media_type="application/json", headers=FRESH | {"ETag": tag})


def _asset(assets: dict[str, bytes], request: Request, name: str) -> Response:
    if name not in assets:
        raise HTTPException(404, "no such file")
    return Response(assets[name], media_type=TYPES[Path(name).suffix], headers=FRESH)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    content = json.dumps({"error": error.detail})
    return Response(content, error.status_code, headers=error.headers, media_type="application/json")
