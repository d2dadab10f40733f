"""What TensorBoard asks of the tab: its routes."""

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

from clipcam_lightning.tensorboard_tab.answers import colors_answer, evaluations_answer, rows_answer
from clipcam_lightning.tensorboard_tab.events import PLUGIN
from clipcam_lightning.tensorboard_tab.runs import Evaluations, Moment, RunReader

FIRST_ROWS = 16  # as many as a large screen shows
MOST_ROWS = 64  # in one answer, whose size they bound
MOST_KNOWN = 2  # runs whose looks are kept: as many as are shown side by side
BINARY = "application/octet-stream"
TYPES = {".js": "text/javascript", ".css": "text/css"}  # of the page's files


class ClipCamPlugin(TBPlugin):  # type: ignore[misc]  # TensorBoard ships no types
    """The CLIP CAM tab.

    It reads through TensorBoard's data provider alone. Between two requests it keeps, of two runs at most, all but the
    maps and pictures of the looks.
    """

    plugin_name = PLUGIN

    def __init__(self, context: TBContext) -> None:
        self._provider = context.data_provider
        self._known: dict[tuple[str, str, str], tuple[Moment | None, Evaluations]] = {}

    @override
    def get_plugin_apps(self) -> dict[str, Callable[..., Any]]:
        """Every route by name: none is made of what a request says."""
        return {
            **_page(),
            "/runs": _app(self._runs, "application/json"),
            "/evaluations": _app(self._evaluations, BINARY),
            "/rows": _app(self._rows, BINARY),
            "/colors": _app(lambda _: colors_answer(), BINARY),
        }

    @override
    def is_active(self) -> bool:
        """Whether the tab is offered although there is nothing to show; what there is TensorBoard sees itself."""
        return False

    @override
    def frontend_metadata(self) -> FrontendMetadata:
        """Where the page begins."""
        return FrontendMetadata(es_module_path="/index.js", tab_name="CLIP CAM")

    def _runs(self, request: Request) -> bytes:
        return json.dumps({"runs": [vars(watched) for watched in self._reader(request).watched()]}).encode()

    def _evaluations(self, request: Request) -> bytes:
        run, root, reader = self._asked(request)
        evaluations = self._read(reader, run, root)
        names = evaluations.flagged_first[:FIRST_ROWS]
        return evaluations_answer(evaluations, names, reader.rows(run, root, names, evaluations))

    def _rows(self, request: Request) -> bytes:
        run, root, reader = self._asked(request)
        names = request.args.getlist("probe")
        if not 0 < len(names) <= MOST_ROWS:
            raise InvalidArgumentError(f"Ask for 1 to {MOST_ROWS} probes at a time, not for {len(names)}.")
        newest, evaluations = self._known.get((reader.experiment, run, root), (None, None))
        if evaluations is None or newest != reader.newest(run, root):
            evaluations = self._read(reader, run, root)
        if unknown := set(names) - set(evaluations.probes["names"]):
            raise NotFoundError(f"Run {run!r} has no probe {min(unknown)!r}.")
        return rows_answer(evaluations, names, reader.rows(run, root, names, evaluations))

    def _read(self, reader: RunReader, run: str, root: str) -> Evaluations:
        """All looks of a run; kept, since its rows are asked for next and reading them takes less than this."""
        newest = reader.newest(run, root)  # before the rest: what is written in between is read next time
        evaluations, key = reader.evaluations(run, root), (reader.experiment, run, root)
        others = [(other, known) for other, known in self._known.items() if other != key]
        self._known = dict([*others, (key, (newest, evaluations))][-MOST_KNOWN:])
        return evaluations

    def _asked(self, request: Request) -> tuple[str, str, RunReader]:
        run, root = request.args.get("run"), request.args.get("root")
        if run is None or root is None:
            raise InvalidArgumentError("Say which run and which root.")
        return run, root, self._reader(request)

    def _reader(self, request: Request) -> RunReader:
        return RunReader(self._provider, context(request.environ), experiment_id(request.environ))


def _page() -> dict[str, Callable[..., Any]]:
    static = Path(__file__).with_name("static").iterdir()
    return {f"/{file.name}": _file(file) for file in static if file.suffix in TYPES}


def _file(file: Path) -> Callable[..., Any]:
    content = file.read_bytes()
    return _app(lambda _: content, TYPES[file.suffix])


def _app(answer: Callable[[Request], bytes], content_type: str) -> Callable[..., Any]:
    """A WSGI application that answers each request with these bytes."""
    app: Callable[..., Any] = Request.application(lambda request: Respond(request, answer(request), content_type))
    return app
