"""The plugin inside TensorBoard: refused requests, damaged data, other tabs, and the command."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.numpy import load
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.data.provider import RunTagFilter
from torch.utils.tensorboard import SummaryWriter

import clipcam_lightning.tensorboard_tab as tab
from clipcam_lightning.cam.colors import CHANGE, HEAT, colored
from clipcam_lightning.sinks.tensorboard_tab import TabSink
from clipcam_lightning.tensorboard_tab import ClipCamLoader
from clipcam_lightning.tensorboard_tab.runs import RunReader
from tests.support.boards import stop
from tests.support.hostile import TEXTS, example_folder, examples, texts
from tests.support.in_process import LOADERS, Board, board_over, until, write_events
from tests.support.shell import ENVIRONMENT
from tests.support.synthetic_evaluations import evaluations_of, random_maps, write_run

pytestmark = pytest.mark.slow

PACKAGE = Path(tab.__file__).parents[1]
NAMES = [f"probe-{i}" for i in range(70)]
UNKNOWN_MAP = -(2**31)
RUN = {"run": "run", "root": "clipcam"}


@pytest.fixture(scope="module", params=LOADERS)
def board(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    folder = tmp_path_factory.mktemp("logs")
    write_run(folder / "run", evaluations_of(random_maps(range(3), 70), [f"a {i}" for i in range(70)]), panels=1)
    with board_over(request.param, folder) as board:
        yield board


REFUSED = {
    "no run": (400, "evaluations", {"root": "clipcam"}),
    "no root": (400, "evaluations", {"run": "run"}),
    "rows of no run": (400, "rows", {"root": "clipcam", "probe": "probe-0"}),
    "no probe": (400, "rows", RUN),
    "65 probes": (400, "rows", {**RUN, "probe": NAMES[:65]}),
    "unknown run": (404, "evaluations", {**RUN, "run": "runs"}),
    "unknown root": (404, "evaluations", {**RUN, "root": "clip"}),
    "unknown probe": (404, "rows", {**RUN, "probe": ["probe-0", "probe"]}),
    "empty names": (404, "evaluations", {"run": "", "root": ""}),
    "a run above": (404, "evaluations", {**RUN, "run": "../run"}),
    **{
        f"{kind} as run": (404, "evaluations", {**RUN, "run": text})
        for kind, text in TEXTS.items()
        if kind != "half a pair"
    },
    **{
        f"{kind} as probe": (404, "rows", {**RUN, "probe": text})
        for kind, text in TEXTS.items()
        if kind != "half a pair"
    },
}


@pytest.mark.parametrize(("status", "route", "query"), REFUSED.values(), ids=REFUSED)
def test_a_bad_request_is_refused_with_plain_text(
    status: int, route: str, query: Mapping[str, object], board: Board
) -> None:
    response = board.get(f"clipcam/{route}", query)
    assert response.status_code == status
    assert response.content_type == "text/plain; charset=utf-8"


UNKNOWN_ROUTES = [
    *(
        "",
        "index.html",
        "static/index.js",
        "plugin.py",
        "Evaluations",
        "evaluations.json",
        "evaluations/x",
        "__init__.py",
        "static",
    ),
    *("../clipcam_/runs", "..%2f..%2fplugin.py", "%2e%2e/plugin.py", "....//plugin.py", "..\\plugin.py", "/etc/passwd"),
    *("%2fetc%2fpasswd", "static/%2e%2e/plugin.py", "index.js%00", "index.js/../plugin.py", "%252e%252e%252fplugin.py"),
]


@pytest.mark.parametrize("route", UNKNOWN_ROUTES, ids=[route or "none" for route in UNKNOWN_ROUTES])
def test_an_unknown_route_is_not_found(route: str, board: Board) -> None:
    response = board.get(f"clipcam/{route}")
    assert response.status_code == 404
    assert response.content_type == "text/plain; charset=utf-8"
    assert b"import" not in response.data


def test_invalid_utf8_in_a_query_is_not_found(board: Board) -> None:
    for query in ("run=%ed%a0%bd&root=clipcam", "run=run&root=%ff", "run=%00&root=%c3"):
        assert board.client.get(f"/data/plugin/clipcam/evaluations?{query}").status_code == 404


def test_no_response_has_the_content_type_of_a_page(board: Board) -> None:
    static = {"clipcam/" + file.name for file in (PACKAGE / "tensorboard_tab" / "static").iterdir()}
    responses = {
        **{route: board.get(route) for route in ("clipcam/runs", "clipcam/colors", *static)},
        "clipcam/evaluations": board.get("clipcam/evaluations", RUN),
        "clipcam/rows": board.get("clipcam/rows", {**RUN, "probe": "probe-3"}),
    }
    types = {route: response.content_type for route, response in responses.items()}
    assert {response.status_code for response in responses.values()} == {200}
    assert set(types.values()) <= {
        *("application/json", "application/octet-stream", "text/javascript; charset=utf-8", "text/css; charset=utf-8")
    }
    assert types["clipcam/runs"] == "application/json"
    assert types["clipcam/evaluations"] == types["clipcam/rows"] == "application/octet-stream"


def test_the_largest_request_is_answered_in_the_requested_order(board: Board) -> None:
    names = NAMES[66:2:-1]
    arrays, about = board.arrays("rows", **RUN, probe=names)
    assert about["rows"] == names
    assert arrays["maps"].shape == (64, 3, 3, 5)


def test_a_request_for_rows_reads_the_metrics_again_only_after_a_new_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations = evaluations_of(random_maps(range(3), 2), ["a", "b"])
    with SummaryWriter(tmp_path / "run") as writer, board_over("legacy", tmp_path, growing=True) as board:
        sink = TabSink(writer, "clipcam")
        for evaluation in evaluations[:2]:
            sink.write(evaluation)
        for run in ("other", "third"):
            write_run(tmp_path / run, evaluations[:2])
        for run in ("other", "third", "run"):
            until(lambda run=run: has_rows(board, run, 2))
            assert has_rows(board, run, 2)  # once more: the first read may have missed the last evaluation
        read: list[str] = []
        original = RunReader.evaluations
        monkeypatch.setattr(
            RunReader, "evaluations", lambda self, run, root: [read.append(run), original(self, run, root)][1]
        )
        assert all(has_rows(board, run, 2) for run in ("third", "run", "third", "run"))
        assert read == []
        assert all(has_rows(board, run, 2) for run in ("other", "run", "other", "third"))
        assert read == ["other", "third"], "the cache holds the two runs that were read last"
        read.clear()
        sink.write(evaluations[2])
        until(lambda: has_rows(board, "run", 3))
        assert 1 <= read.count("run") == len(read) <= 2, (
            "after its removal from the cache, and after the new evaluation"
        )
        board.arrays("evaluations", **RUN)
        assert read[-1:] == ["run"], "the metrics themselves are never taken from the cache"


def has_rows(board: Board, run: str, evaluations: int) -> bool:
    """Whether a run has rows of this many evaluations."""
    response = board.get("clipcam/rows", {"run": run, "root": "clipcam", "probe": "probe-0"})
    return response.status_code == 200 and len(load(response.data)["step"]) == evaluations


class ServerError(Exception):
    """An error of the data server, with a code like those of gRPC."""

    def __init__(self, code: str) -> None:
        self.code = lambda: SimpleNamespace(name=code)


def test_data_too_large_for_the_data_server_is_left_out_but_a_dead_server_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", evaluations_of(random_maps(range(2), 2), ["a", "b"]))
    with board_over("legacy", tmp_path) as board:
        original = MultiplexerDataProvider.read_tensors

        def limited(self: Any, *args: Any, run_tag_filter: RunTagFilter, **options: Any) -> Any:
            if any(tag.endswith("map/probe-0") for tag in run_tag_filter.tags):
                raise ServerError("RESOURCE_EXHAUSTED")
            return original(self, *args, run_tag_filter=run_tag_filter, **options)

        monkeypatch.setattr(MultiplexerDataProvider, "read_tensors", limited)
        arrays, _ = board.arrays("rows", **RUN, probe=["probe-0", "probe-1"])
        assert np.isnan(arrays["maps"].astype(np.float32)).all((1, 2, 3)).tolist() == [True, False]

        def dead(*args: Any, **options: Any) -> Any:
            raise ServerError("UNAVAILABLE")

        monkeypatch.setattr(MultiplexerDataProvider, "read_tensors", dead)
        with pytest.raises(ServerError):
            board.get("clipcam/evaluations", RUN)


def test_a_tag_without_a_tensor_yet_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run", evaluations_of(random_maps(range(2), 2), ["a", "b"]))
    with board_over("legacy", tmp_path) as board:
        original, failures = MultiplexerDataProvider.list_tensors, [KeyError("clipcam/tab/evaluation")]

        def racing(*args: Any, **options: Any) -> Any:
            if failures:
                raise failures.pop()
            return original(*args, **options)

        monkeypatch.setattr(MultiplexerDataProvider, "list_tensors", racing)
        assert [source["run"] for source in board.json("clipcam/runs")["runs"]] == ["run"]


def test_colors_equal_those_of_the_logged_images(board: Board) -> None:
    arrays, about = board.arrays("colors")
    assert (about["heat"][0], about["change"]) == (HEAT, CHANGE)
    for name, table in arrays.items():
        assert table.shape == (256, 3)
        levels = colored(torch.linspace(0, 1, 256)[None], name)[:, 0].T
        assert np.array_equal(table, (levels * 255).round().byte().numpy())


def test_the_tab_is_listed_if_there_is_data_for_it(tmp_path: Path) -> None:
    write_run(tmp_path / "with", evaluations_of(random_maps([0], 1), ["a"]))
    write_run(tmp_path / "without" / "run", evaluations_of(random_maps([0], 1), ["a"]), tab=False)
    for loader in LOADERS:
        for folder, shown in (("with", True), ("without", False)):
            with board_over(loader, tmp_path / folder) as board:
                listed = board.client.get("/data/plugins_listing").json["clipcam"]
                assert listed["enabled"] is shown
                assert listed["tab_name"] == "CLIP CAM"
                assert listed["loading_mechanism"] == {"type": "IFRAME", "module_path": "/data/plugin/clipcam/index.js"}


def data_of_other_tabs(board: Board) -> dict[str, Any]:
    """Fetch the data of the other tabs."""
    images = board.json("images/tags")["run"]
    files = {
        tag: [
            board.get(f"images/individualImage?{sample['query']}").data
            for sample in board.json("images/images", {"run": "run", "tag": tag, "sample": 0})
        ]
        for tag in images
    }
    scalars = board.json("scalars/tags")["run"]
    points = {
        tag: [point[1:] for point in board.json("scalars/scalars", {"run": "run", "tag": tag})] for tag in scalars
    }
    texts = board.json("text/tags")["run"]
    contents = {tag: [row["text"] for row in board.json("text/text", {"run": "run", "tag": tag})] for tag in texts}
    return {"images": images, "files": files, "scalars": scalars, "points": points, "texts": contents}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in TensorBoard's text plugin
@pytest.mark.parametrize("loader", LOADERS)
def test_the_other_tabs_get_the_same_data_with_and_without_this_one(loader: str, tmp_path: Path) -> None:
    evaluations, data = evaluations_of(random_maps(range(12), 2), ["a", "b"]), []
    for with_tab in (False, True):
        write_run(tmp_path / str(with_tab) / "run", evaluations, tab=with_tab, panels=1)
        with board_over(loader, tmp_path / str(with_tab)) as board:
            data.append(data_of_other_tabs(board))
    assert all(data[0].values())
    assert data[0] == data[1]


# Damaged event files: anyone may have written them.


def valid_events() -> list[Event]:
    with example_folder() as folder:
        stored = evaluations_of(random_maps([9], 2, seed=3), ["a", "b"])[0].snapshot
        masks = [torch.ones(32, 32, dtype=torch.bool), None]
        evaluations = evaluations_of(random_maps(range(2), 2), ["a", "b"], baseline=stored)
        write_run(folder, [replace(each, masks=masks, visible=[0.5, 1.0]) for each in evaluations])
        (file,) = folder.iterdir()
        events = list(LegacyEventFileLoader(str(file)).Load())
    return [e for e in events if any("/tab/" in value.tag for value in e.summary.value)]


VALID = [event.SerializeToString() for event in valid_events()]
BOMBS = [
    "[" * 100_000,
    '{"version":1,"epoch":' + "[" * 50_000 + "]" * 50_000 + "}",
    '{"version":' + "9" * 5000 + "}",
    "1e999",
]
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.sampled_from([10**400, 2**63, 0.5, -1])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
KINDS = st.sampled_from([*range(1, 24), 101, 0])
SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 5, 12, -1]), max_size=4)
TENSORS = st.builds(
    lambda kind, sizes, content, strings, floats: TensorProto(
        dtype=kind,
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes]),
        tensor_content=content,
        string_val=strings,
        float_val=floats,
    ),
    KINDS,
    SIZES,
    st.sampled_from([b"", b"\0" * 4, b"\xff" * 30, b"\x7f\x80" * 15, b"\0" * 60, b"\0" * 104]) | st.binary(max_size=64),
    st.lists(st.binary(max_size=8) | st.sampled_from(BOMBS).map(str.encode), max_size=2),
    st.lists(st.floats(width=32), max_size=2),
)
METADATA = st.one_of(
    st.sampled_from([b"", b"null", b"[]", b"2", b'"1"', b"NaN", b"{}", b"[" * 100_000]),
    st.binary(max_size=8),
)


@st.composite
def damaged(draw: st.DrawFn) -> list[Event]:
    """Replace some parts of valid events."""
    events = [Event.FromString(event) for event in VALID]
    for _ in range(draw(st.integers(1, 3))):
        event = draw(st.sampled_from(events))
        if not event.summary.value:
            continue
        value = draw(st.sampled_from(list(event.summary.value)))
        kind = draw(st.sampled_from(["json", "text", "tensor", "cut", "metadata", "class", "remove", "double", "time"]))
        if kind == "json" and value.tensor.string_val:
            change_json(draw, value)
        elif kind in ("json", "text"):
            value.tensor.CopyFrom(TensorProto(dtype=7, string_val=[draw(st.sampled_from(BOMBS)).encode()]))
        elif kind == "tensor":
            value.tensor.CopyFrom(draw(TENSORS))
        elif kind == "cut":
            value.tensor.tensor_content = value.tensor.tensor_content[: draw(st.integers(0, 40))]
        elif kind == "metadata":
            value.metadata.plugin_data.content = draw(METADATA)
        elif kind == "class":
            value.metadata.data_class = draw(st.sampled_from([0, 1, 2, 3]))
        elif kind == "remove":
            event.summary.value.remove(value)
        elif kind == "double":
            event.summary.value.append(value)
        else:
            event.wall_time = draw(st.floats())
            event.step = draw(st.sampled_from([-1, 0, 2**62, -(2**63), 2**63 - 1]))
    return events


def change_json(draw: st.DrawFn, value: Summary.Value) -> None:
    try:
        content = json.loads(value.tensor.string_val[0])
    except (ValueError, RecursionError):
        return
    if not isinstance(content, dict):
        return
    key = draw(st.sampled_from([*content, "extra"]))
    if draw(st.booleans()):
        content[key] = draw(ANYTHING)
    elif isinstance(content.get(key), list) and draw(st.booleans()):
        content[key] = [*content[key], draw(ANYTHING)]
    elif key in content:
        content[key] = draw(
            st.sampled_from([[], [content[key]], {}, str(content[key]), 0.5, 2, [1, 1], ["a", "a"], "x" * 10**4])
        )
        if draw(st.booleans()):
            del content[key]
    value.tensor.string_val[0] = json.dumps(content).encode()


def check(board: Board) -> bool:
    """Check that no route fails (the client raises its error); return whether there are evaluations."""
    for source in board.json("clipcam/runs")["runs"]:
        assert set(source) == {"run", "root", "problem", "alarm", "wall_time"}
    response = board.get("clipcam/evaluations", RUN)
    assert response.status_code in (200, 404)
    assert response.status_code == 200 or len(response.data) < 300
    if response.status_code == 200:
        arrays, about = board.arrays("evaluations", **RUN)
        names = about["probes"]["names"]
        assert len(arrays["maps"]) == min(len(names), 16)
        board.arrays("rows", **RUN, probe=names[:64])
        assert json.dumps(about, allow_nan=False)
        available = range(-len(arrays.get("baselines", ())), len(arrays["step"]))
        assert set(arrays["baseline"].tolist()) <= {UNKNOWN_MAP, *available}
    assert "loaded" in board.json("scalars/tags")["run"]
    board.json("images/tags")
    assert "clipcam" in board.client.get("/data/plugins_listing").json
    return response.status_code == 200


def is_shown_from(events: list[Event], loader: str) -> bool:
    """Check every route on a run of these events; return whether there are evaluations."""
    with example_folder() as folder:
        write_events(folder / "run" / "events.out.tfevents.1.x", events)
        with board_over(loader, folder) as board:
            return check(board)


@pytest.mark.parametrize("loader", LOADERS)
def test_valid_events_are_shown(loader: str) -> None:
    assert is_shown_from([Event.FromString(event) for event in VALID], loader)


def array(shape: list[int], content: bytes, kind: int = 1) -> TensorProto:
    sizes = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
    return TensorProto(dtype=kind, tensor_shape=sizes, tensor_content=content)


def text(content: str, **wrong: object) -> TensorProto:
    return TensorProto(dtype=7, string_val=[content.encode()], **wrong)


GROUND = {"probe": 0, "called": [1], "called_before": [0]}
IN_JSON = {
    "an evaluation of a later version": ("evaluation", {"version": 2}, False),
    "an epoch that is no integer": ("evaluation", {"epoch": 0.5}, False),
    "an epoch beyond 64 bits": ("evaluation", {"epoch": 10**400}, False),
    "a baseline beyond 64 bits": ("evaluation", {"baseline_step": -(10**400)}, False),
    "an alarm that is a number": ("evaluation", {"alarm": 1}, False),
    "a reason that is a list": ("evaluation", {"reason": []}, False),
    "layers that are no list": ("evaluation", {"layers": "visual"}, False),
    "layers that are numbers": ("evaluation", {"layers": [float("nan")]}, False),
    "notes that are lists": ("evaluation", {"notes": [[]]}, False),
    "many long notes": ("evaluation", {"notes": ["x" * 1000] * 1000}, True),
    "states that are a list": ("evaluation", {"states": ["constant"]}, False),
    "a state that is a number": ("evaluation", {"baseline_states": {"probe-0": 1}}, False),
    "a state without words": ("evaluation", {"states": {"probe-0": "__proto__"}}, True),
    "grounds that are an object": ("evaluation", {"grounds": {}}, True),
    "grounds that are numbers": ("evaluation", {"grounds": [1]}, True),
    "a ground without a probe": ("evaluation", {"grounds": [{"called": [], "called_before": []}]}, True),
    "names in place of numbers": ("evaluation", {"grounds": [{**GROUND, "called": ["probe-0"]}]}, True),
    "more names than tiles": ("evaluation", {"grounds": [{**GROUND, "called": [1, 0]}]}, True),
    "many grounds": ("evaluation", {"grounds": [GROUND] * 1000}, True),
    "shares that are a text": ("probes", {"visible": "all"}, True),
    "a share that is not finite": ("probes", {"visible": [float("nan"), 1.0]}, True),
    "a method that is an object": ("evaluation", {"method": {}}, False),
    "no grid": ("evaluation", {"grid": None}, False),
    "a grid of three sides": ("evaluation", {"grid": [3, 5, 1]}, False),
    "an endless grid": ("evaluation", {"grid": [10**9, 10**9]}, False),
    "a grid without cells": ("evaluation", {"grid": [0, 5]}, False),
    "probes of a later version": ("probes", {"version": 2}, False),
    "two probes of one name": ("probes", {"names": ["probe-0"] * 2}, False),
    "half of a surrogate pair in a name": ("probes", {"names": ["probe-0", "\ud800"]}, False),
    "more prompts than names": ("probes", {"prompts": ["a"] * 3}, False),
    "no probes": ("probes", {"names": [], "prompts": [], "digests": []}, False),
    "a digest that is a list": ("probes", {"digest": []}, False),
    "a rule that is no number": ("probes", {"rule": float("nan")}, True),
}


@pytest.mark.parametrize(("kind", "changes", "is_shown"), IN_JSON.values(), ids=IN_JSON)
def test_invalid_json_is_left_out(kind: str, changes: dict[str, object], is_shown: bool) -> None:
    events = [Event.FromString(event) for event in VALID]
    for value in (value for event in events for value in event.summary.value if value.tag.endswith(kind)):
        content = {**json.loads(value.tensor.string_val[0]), **changes}
        value.tensor.string_val[0] = json.dumps(content).encode()
    assert is_shown_from(events, "legacy") is is_shown


IN_TENSORS = {
    "an alarm that is a text": ("alarm", text("alarm"), True),
    "an alarm that is not finite": ("alarm", array([], b"\0\0\xc0\x7f"), True),
    "an alarm that does not fit its shape": ("alarm", array([2], b"\0"), True),
    "a mask of numbers": ("mask/probe-0", array([1], b"\0" * 4), True),
    "a mask that is a text": ("mask/probe-0", text("png"), True),
    "a map of another grid": ("map/probe-0", array([5, 3], b"\0" * 30, 19), True),
    "a map of another type": ("map/probe-0", array([3, 5], b"\0" * 60), True),
    "a map that does not fit its shape": ("map/probe-0", array([3, 5], b"\0" * 29, 19), True),
    "a map that is a text": ("map/probe-0", text("map"), True),
    "an image that does not fit its shape": ("image/probe-0", array([2, 2], b"jpeg", 7), True),
    "an image without a shape": ("image/probe-0", text("jpeg"), True),
    "an image of numbers": ("image/probe-0", array([1], b"\0" * 4), True),
    "no image": ("image/probe-0", array([0], b"", 7), True),
    "baselines of another grid": ("baseline", array([2, 5, 3], b"\0" * 120), True),
    "baselines of other probes": ("baseline", array([3, 3, 5], b"\0" * 180), True),
    "metrics of other probes": ("metrics", array([3, 14], b"\0" * 168), False),
    "metrics that are not finite": ("metrics", array([2, 14], b"\0\0\xc0\x7f\0\0\x80\xff" * 14), True),
    "metrics that do not fit their shape": ("metrics", array([2, 14], b"\0"), False),
    "metrics of an undefined type": ("metrics", array([2, 14], b"\0" * 112, 99), False),
    "an evaluation of several texts": ("evaluation", TensorProto(dtype=7, string_val=[b"{}", b"{}"]), False),
    "an evaluation that is not JSON": ("evaluation", text("{"), False),
    "an evaluation that is a list": ("evaluation", text("[]"), False),
    "an evaluation that is not UTF-8": ("evaluation", TensorProto(dtype=7, string_val=[b"\xff"]), False),
    "an evaluation that is a number": ("evaluation", array([], b"\0" * 4), False),
    "an evaluation that is nested deeply": ("evaluation", text(BOMBS[1]), False),
    "an evaluation that is a very long number": ("evaluation", text(BOMBS[2]), False),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("kind", "tensor", "is_shown"), IN_TENSORS.values(), ids=IN_TENSORS)
def test_invalid_tensors_are_left_out(kind: str, tensor: TensorProto, is_shown: bool, loader: str) -> None:
    events = [Event.FromString(event) for event in VALID]
    for value in (value for event in events for value in event.summary.value if value.tag.endswith(f"/tab/{kind}")):
        value.tensor.CopyFrom(tensor)
    assert is_shown_from(events, loader) is is_shown


OF_VERSIONS = {
    "1": "",
    "2": "It was written by a later version (format 2): update clipcam-lightning.",
    **dict.fromkeys(
        ("", "null", "true", "[]", "{}", '"1"', "NaN", "[" * 100_000, "\udcff"),
        "Its data is damaged: the format version is missing.",
    ),
}


@pytest.mark.parametrize(
    ("metadata", "problem"), OF_VERSIONS.items(), ids=[ascii(content[:16]) for content in OF_VERSIONS]
)
def test_a_run_of_another_version_is_listed_with_its_problem(metadata: str, problem: str) -> None:
    events = [Event.FromString(event) for event in VALID]
    for value in (value for event in events for value in event.summary.value):
        value.metadata.plugin_data.content = metadata.encode("utf-8", "surrogateescape")
    with example_folder() as folder:
        write_events(folder / "run" / "events.out.tfevents.1.x", events)
        with board_over("legacy", folder) as board:
            (source,) = board.json("clipcam/runs")["runs"]
            assert source == {**RUN, "problem": problem, "alarm": True, "wall_time": source["wall_time"]}
            check(board)


def test_an_unreadable_evaluation_removes_no_other() -> None:
    events = [Event.FromString(event) for event in VALID]
    (value,) = (value for value in events[0].summary.value if value.tag.endswith("tab/evaluation"))
    value.tensor.string_val[0] = b"{}"
    with example_folder() as folder:
        write_events(folder / "run" / "events.out.tfevents.1.x", events)
        with board_over("legacy", folder) as board:
            arrays, about = board.arrays("evaluations", **RUN)
    assert arrays["step"].tolist() == [1]
    assert about["left_out"] == {"unreadable": 1}
    assert arrays["baseline"].tolist() == [-1], "its baseline was written with the damaged evaluation"


def test_a_missing_map_is_nan() -> None:
    events = [Event.FromString(event) for event in VALID]
    (value,) = (value for value in events[1].summary.value if value.tag.endswith("map/probe-1"))
    events[1].summary.value.remove(value)
    with example_folder() as folder:
        write_events(folder / "run" / "events.out.tfevents.1.x", events)
        with board_over("legacy", folder) as board:
            arrays, _ = board.arrays("rows", **RUN, probe=["probe-0", "probe-1"])
    assert np.isnan(arrays["maps"].astype(np.float32)).all((2, 3)).tolist() == [[False, False], [False, True]]


def test_a_map_that_does_not_fit_its_shape_removes_no_other() -> None:
    events = [Event.FromString(event) for event in VALID]
    (value,) = (value for value in events[1].summary.value if value.tag.endswith("map/probe-1"))
    value.tensor.tensor_content = b"\0"
    with example_folder() as folder:
        write_events(folder / "run" / "events.out.tfevents.1.x", events)
        with board_over("legacy", folder) as board:
            arrays, _ = board.arrays("rows", **RUN, probe=["probe-0", "probe-1"])
    assert np.isfinite(arrays["maps"][0].astype(np.float32)).all()


@given(events=damaged())
@examples(100)
def test_damaged_data_is_left_out(events: list[Event]) -> None:
    is_shown_from(events, "legacy")


@given(events=damaged())
@examples(20)
def test_damaged_data_is_left_out_by_the_fast_loader(events: list[Event]) -> None:
    is_shown_from(events, "fast")


# TensorBoard as its command starts it.


LINE = re.compile(r"(http://\S+:\d+\S*)")


@contextmanager
def command(folder: Path, *flags: str, path: Path = PACKAGE.parent) -> Iterator[str]:
    """Start TensorBoard by its command and yield its address."""
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{path}{os.pathsep}{PACKAGE.parent}", "PYTHONUNBUFFERED": "1"}
    order = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port=0", "--host=localhost", *flags]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(order, cwd=path, env=environment, **pipes) as board:
        try:
            assert board.stdout is not None
            output = []
            for line in board.stdout:
                output.append(line)
                if address := LINE.search(line) if "TensorBoard" in line else None:
                    yield address[1].rstrip("/")
                    return
            raise AssertionError("".join(output))
        finally:
            stop(board)


def fetch(url: str, route: str, **query: object) -> bytes | None:
    """Return the body of a response; ``None`` if it is 404."""
    try:
        with urllib.request.urlopen(
            f"{url}/data/{route}?{urllib.parse.urlencode(query, True)}", timeout=60
        ) as response:
            content: bytes = response.read()
            return content
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            return None
        raise


def steps(url: str) -> list[float]:
    content = fetch(url, "plugin/clipcam/evaluations", **RUN)
    step: list[float] = load(content)["step"].tolist() if content else []
    return step


@pytest.mark.parametrize("flags", [["--load_fast=auto"], ["--load_fast=false"]], ids=["usual", "legacy"])
def test_the_command_keeps_sixty_evaluations_by_default(flags: list[str], tmp_path: Path) -> None:
    write_run(tmp_path / "run", evaluations_of(random_maps(range(60), 2), ["a", "b"]))
    with command(tmp_path, *flags) as url:
        until(lambda: steps(url) == list(range(60)))


def test_the_users_own_sample_limit_is_kept(tmp_path: Path) -> None:
    write_run(tmp_path / "run", evaluations_of(random_maps(range(60), 2), ["a", "b"]))
    with command(tmp_path, "--samples_per_plugin", "clipcam=5,images=3", "--load_fast=false") as url:
        until(lambda: len(steps(url)) == 5)


@pytest.mark.parametrize("broken", ["plugin", "events", "runs", "parsing"])
def test_the_other_tabs_work_if_this_one_cannot_be_loaded(broken: str, tmp_path: Path) -> None:
    write_run(tmp_path / "logs" / "run", evaluations_of(random_maps(range(2), 2), ["a", "b"]))
    shutil.copytree(PACKAGE, tmp_path / "path" / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    (module,) = (tmp_path / "path").rglob(f"{broken}.py")
    module.write_text("raise SystemError('on purpose')")
    with command(tmp_path / "logs", "--load_fast=false", path=tmp_path / "path") as url:
        until(lambda: b"clipcam_drift/probe-0" in (fetch(url, "plugin/scalars/tags") or b""))
        assert b"scalars" in (fetch(url, "plugins_listing") or b"")
        assert fetch(url, "plugin/clipcam/runs") is None


SERVING = """
import sys, warnings
warnings.simplefilter("ignore")
import clipcam_lightning.tensorboard_tab
heavy = {"torch", "lightning", "pytorch_lightning", "open_clip", "PIL", "cmap", "safetensors"}
ours = {name for name in sys.modules if name.startswith("clipcam_lightning")}
assert ours == {"clipcam_lightning", "clipcam_lightning.tensorboard_tab"}, ours
assert not heavy & set(sys.modules), heavy & set(sys.modules)

from pathlib import Path
from tests.support.in_process import board_over
with board_over("legacy", Path(sys.argv[1])) as board:
    evaluations, about = board.arrays("evaluations", run="run", root="clipcam")
    board.arrays("rows", run="run", root="clipcam", probe=about["rows"])
    board.arrays("colors")
    board.json("clipcam/runs")
    board.get("clipcam/index.js")
assert not {"torch", "lightning", "pytorch_lightning", "open_clip"} & set(sys.modules)
print(len(evaluations["step"]))
"""


def test_the_server_imports_neither_torch_nor_lightning(tmp_path: Path) -> None:
    write_run(tmp_path / "run", evaluations_of(random_maps(range(3), 2), ["a", "b"]))
    environment = {**ENVIRONMENT, "PYTHONPATH": str(PACKAGE.parent)}
    order = [sys.executable, "-c", SERVING, str(tmp_path)]
    done = subprocess.run(order, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3\n"


@pytest.mark.parametrize("flags", [argparse.Namespace(), argparse.Namespace(samples_per_plugin=()), None, ()], ids=str)
def test_unexpected_flags_are_left_alone(flags: Any) -> None:
    ClipCamLoader().fix_flags(flags)


def test_only_the_sample_limit_of_this_tab_is_set() -> None:
    flags = argparse.Namespace(samples_per_plugin={"images": 3})
    ClipCamLoader().fix_flags(flags)
    assert flags.samples_per_plugin == {"images": 3, "clipcam": 1000}
    flags = argparse.Namespace(samples_per_plugin={"clipcam": 5})
    ClipCamLoader().fix_flags(flags)
    assert flags.samples_per_plugin == {"clipcam": 5}
