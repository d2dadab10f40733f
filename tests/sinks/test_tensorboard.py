"""What a real TensorBoard serves of an evaluation over HTTP."""

import html
import json
import re
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard import program
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning import Probe, ProbeSet
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.monitoring.explainer import LocalExplainer
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.shapes_world.scenes import draw_scenes
from clipcam_lightning.sinks.drawing import Drawer
from clipcam_lightning.sinks.tensorboard import MEANINGS, TensorBoardSink, escape_markup, format_probe_table
from clipcam_lightning.sinks.tensorboard_images import TensorBoardImageSink

HOSTILE = "<img src=x onerror=alert(1)> **bold** | `code` [a](javascript:1) 'quotes' _x_ 猫"
EVALUATIONS = 14  # more than the ten images per tag that TensorBoard keeps


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Responses of a real TensorBoard with the evaluations of one run."""
    from clipcam_lightning.cam.finding import find_clip
    from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip

    folder = tmp_path_factory.mktemp("logs")
    torch.manual_seed(0)
    clip = find_clip(build_clip("vit"), tokenizer=WordTokenizer())
    monitor = make_monitor()
    writer = SummaryWriter(folder / "run")
    monitor.sinks = [TensorBoardSink(writer), TensorBoardImageSink(writer, "clipcam", Drawer(2))]
    for step in range(EVALUATIONS):
        assert not monitor.evaluate(
            LocalExplainer(clip, MapSettings(method="hirescam")), step=step, epoch=step
        ).problems
    assert not monitor.close()
    writer.close()

    board = program.TensorBoard()
    board.configure(argv=[None, "--logdir", str(folder), "--port", "0", "--load_fast", "false"])
    url = board.launch()

    def get(route: str) -> Any:
        with urllib.request.urlopen(f"{url}data/plugin/{route}", timeout=20) as response:
            body = response.read()
        return json.loads(body) if response.headers["Content-Type"].startswith("application/json") else body

    for _ in range(100):
        if get("scalars/tags").get("run"):
            break
    return get


def make_monitor() -> Monitor:
    scenes = draw_scenes(2, seed=4)
    probes = ProbeSet(
        [
            Probe(scenes.images[0], HOSTILE, name="hostile", mask=scenes.masks[0, 0]),
            Probe(scenes.images[1], "a red circle"),
        ]
    )
    return Monitor(probes, rule=DriftRule(0.5))


def query(**parameters: object) -> str:
    return urllib.parse.urlencode(parameters)


@pytest.mark.filterwarnings("ignore")
def test_images_are_served_as_jpeg_and_the_newest_survive_the_sampling(served: Any) -> None:
    tags = served("images/tags")["run"]
    assert tags.keys() == {"clipcam_maps/hostile", "clipcam_maps/a-red-circle", "clipcam_contact_sheet/all_probes"}
    for tag in tags:
        listed = served(f"images/images?{query(run='run', tag=tag, sample=0)}")
        if tag.startswith("clipcam_maps"):
            assert len(listed) == 10, "TensorBoard keeps ten"
        else:
            assert [each["step"] for each in listed] == [0, 1, 3, 7, 13], "a sheet repeats those before it"
        assert listed[-1]["step"] == EVALUATIONS - 1, "always with the newest"
        image = served(f"images/individualImage?{listed[-1]['query']}")
        assert image.startswith(b"\xff\xd8\xff")


@pytest.mark.filterwarnings("ignore")
def test_a_prompt_is_text_wherever_tensorboard_shows_it(served: Any) -> None:
    description = served("images/tags")["run"]["clipcam_maps/hostile"]["description"]
    table = served(f"text/text?{query(run='run', tag='clipcam/probes/text_summary')}")[0]["text"]
    for shown in (description, table):
        assert HOSTILE in html.unescape(shown)
        assert not re.search("<(img|a|code|strong>bold)", shown)
    assert table.count("<tr>") == 1 + 3, (
        "TensorBoard wraps all in a table of one row; then a head and one row per probe"
    )
    assert table.count("<td") == 1 + 2 * 3, "a bar in a prompt does not start a column"


@pytest.mark.filterwarnings("ignore")
def test_scalars_and_images_have_the_same_steps(served: Any) -> None:
    scalars = served(f"scalars/scalars?{query(run='run', tag='clipcam_drift/hostile')}")
    assert [step for _, step, _ in scalars] == list(range(EVALUATIONS))


def test_escaped_text_has_no_markup_and_no_line_break() -> None:
    assert escape_markup("a\n| b\t<c>") == "a &#124; b &#60;c&#62;"
    assert escape_markup("plain words 12") == "plain words 12"


class Kept(Sink):
    """Keeps the last evaluation."""

    def write(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation


def test_the_table_shows_method_layer_rule_and_masks(clip: ClipModel) -> None:
    monitor, kept = make_monitor(), Kept()
    monitor.sinks = [kept]
    monitor.evaluate(LocalExplainer(clip, MapSettings(method="hirescam")), step=0, epoch=0)

    table = format_probe_table(kept.evaluation)

    assert "method **hirescam**" in table
    assert "ln&#95;1" in table
    assert escape_markup(str(kept.evaluation.report.rule)) in table
    for name in kept.evaluation.metrics:
        assert f"- **{escape_markup(name)}**: {escape_markup(MEANINGS[name])}" in table.splitlines()
    assert table.splitlines()[-2].endswith("| yes |")
    assert table.splitlines()[-1] == "| a&#45;red&#45;circle | a red circle | no |"


def test_unknown_metrics_are_not_written(clip: ClipModel, tmp_path: Path) -> None:
    monitor, kept = make_monitor(), Kept()
    monitor.sinks = [kept]
    monitor.evaluate(LocalExplainer(clip, MapSettings(method="hirescam")), step=3, epoch=0)
    writer = SummaryWriter(tmp_path)
    written: list[str] = []
    writer.add_scalar = lambda tag, *_: written.append(tag)  # type: ignore[method-assign]

    TensorBoardSink(writer, "clipcam_mine").write(
        replace(kept.evaluation, metrics={"drift": 0.0, "pointing": float("nan")})
    )

    assert "clipcam_mine/drift" in written
    assert "clipcam_mine/pointing" not in written
    assert [tag for tag in written if "energy" in tag] == ["clipcam_mine_energy_inside_mask/hostile"]
    writer.close()
