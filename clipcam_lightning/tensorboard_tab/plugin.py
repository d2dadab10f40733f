"""The plugin of the CLIP CAM tab: its routes and how it responds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard.backend.http_util import Respond
from tensorboard.errors import InvalidArgumentError, NotFoundError
from tensorboard.plugin_util import context, experiment_id
from tensorboard.plugins.base_plugin import FrontendMetadata, TBContext, TBPlugin
from typing_extensions import override
from werkzeug.wrappers import Request

from clipcam_lightning.tensorboard_tab.events import PLUGIN
from clipcam_lightning.tensorboard_tab.responses import encode_colors, encode_evaluations, encode_rows
from clipcam_lightning.tensorboard_tab.runs import Evaluations, Moment, RunReader

FIRST_ROWS = 16  # as many as a large screen shows
MAX_ROWS = 64  # per response, to bound its size
MAX_CACHED_RUNS = 2  # as many as are shown one below the other
BINARY = "application/octet-stream"
CONTENT_TYPES = {".js": "text/javascript", ".css": "text/css"}  # of the static files


class ClipCamPlugin(TBPlugin):  # type: ignore[misc]  # TensorBoard ships no types
    """The CLIP CAM tab.

    It reads through TensorBoard's data provider alone. Between requests it caches the metrics of at most two runs, but
    no maps or images.
    """

    plugin_name = PLUGIN

    def __init__(self, context: TBContext) -> None:
        self._provider = context.data_provider
        self._cache: dict[tuple[str, str, str], tuple[Moment | None, Evaluations]] = {}

    @override
    def get_plugin_apps(self) -> dict[str, Callable[..., Any]]:
        """Return every route by its fixed name; no route is built from a request."""
        return {
            **_static_routes(),
            "/runs": _app(self._runs, "application/json"),
            "/evaluations": _app(self._evaluations, BINARY),
            "/rows": _app(self._rows, BINARY),
            "/colors": _app(lambda _: encode_colors(), BINARY),
        }

    @override
    def is_active(self) -> bool:
        """Return False: TensorBoard activates the tab when the plugin has data."""
        return False

    @override
    def frontend_metadata(self) -> FrontendMetadata:
        """Return the page's module and the title of the tab."""
        return FrontendMetadata(es_module_path="/index.js", tab_name="CLIP CAM")

    def _runs(self, request: Request) -> bytes:
        return json.dumps({"runs": [vars(source) for source in self._reader(request).sources()]}).encode()

    def _evaluations(self, request: Request) -> bytes:
        run, root, reader = self._parse(request)
        evaluations = self._read(reader, run, root)
        names = evaluations.flagged_first[:FIRST_ROWS]
        return encode_evaluations(evaluations, names, reader.rows(run, root, names, evaluations))

    def _rows(self, request: Request) -> bytes:
        run, root, reader = self._parse(request)
        names = request.args.getlist("probe")
        if not 0 < len(names) <= MAX_ROWS:
            raise InvalidArgumentError(f"Expected 1 to {MAX_ROWS} probes per request, got {len(names)}.")
        newest, evaluations = self._cache.get((reader.experiment, run, root), (None, None))
        if evaluations is None or newest != reader.newest(run, root):
            evaluations = self._read(reader, run, root)
        if unknown := set(names) - set(evaluations.probes["names"]):
            raise NotFoundError(f"Run {run!r} has no probe {min(unknown)!r}.")
        return encode_rows(evaluations, names, reader.rows(run, root, names, evaluations))

    def _read(self, reader: RunReader, run: str, root: str) -> Evaluations:
        """Read all evaluations of a run and cache them, because the page requests its rows next."""
        newest = reader.newest(run, root)  # first: an evaluation written in between makes the cache stale
        evaluations, key = reader.evaluations(run, root), (reader.experiment, run, root)
        others = [(other, entry) for other, entry in self._cache.items() if other != key]
        self._cache = dict([*others, (key, (newest, evaluations))][-MAX_CACHED_RUNS:])
        return evaluations

    def _parse(self, request: Request) -> tuple[str, str, RunReader]:
        run, root = request.args.get("run"), request.args.get("root")
        if run is None or root is None:
            raise InvalidArgumentError("The query must have the parameters 'run' and 'root'.")
        return run, root, self._reader(request)

    def _reader(self, request: Request) -> RunReader:
        return RunReader(self._provider, context(request.environ), experiment_id(request.environ))


def _static_routes() -> dict[str, Callable[..., Any]]:
    files = Path(__file__).with_name("static").iterdir()
    return {f"/{file.name}": _static_app(file) for file in files if file.suffix in CONTENT_TYPES}


def _static_app(file: Path) -> Callable[..., Any]:
    content = file.read_bytes()
    return _app(lambda _: content, CONTENT_TYPES[file.suffix])


def _app(respond: Callable[[Request], bytes], content_type: str) -> Callable[..., Any]:
    """Wrap a function from a request to a body as a WSGI application."""
    app: Callable[..., Any] = Request.application(lambda request: Respond(request, respond(request), content_type))
    return app
