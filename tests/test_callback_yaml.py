"""The callback in the YAML file of a LightningCLI."""

import inspect
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI
from PIL import Image

from clipcam_lightning import ClipCamCallback, Contrast, Snapshot
from clipcam_lightning.shapes_world.models import WordTokenizer
from clipcam_lightning.shapes_world.scenes import draw_scenes
from tests.support.modules import ModuleWithoutTokenizer, OwnTower, PairsModule, SilentSink

CONFIG = """
seed_everything: false
trainer:
  accelerator: cpu
  max_epochs: 1
  default_root_dir: {folder}
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: clipcam_lightning.ClipCamCallback
      init_args:
        probes: {folder}/probes
        method: layercam
        layers: [-2, -1]
        target:
          class_path: clipcam_lightning.Contrast
          init_args:
            negatives: [a blue star]
        score_scale: 100
        scales: [1.0, 1.5]
        flip: true
        shift: true
        fuse: max
        batch_size: 2
        precision: bfloat16
        every_n_epochs: 2
        every_n_train_steps: 3
        baseline: previous
        max_drift: 0.5
        false_alarm_rate: 0.02
        on_drift: log
        num_probes: 4
        num_images: 6
        probe_metrics: true
        sinks:
        - class_path: tests.support.modules.SilentSink
        clip: model
        tokenizer:
          class_path: clipcam_lightning.shapes_world.WordTokenizer
          init_args:
            texts: null
            context_length: 12
        towers: [tests.support.modules.OwnTower]
        prompts: [a red circle, a blue star]
        encode_image: encode_image
        encode_text: encode_text
        dirpath: {folder}/evaluations
        name: from-yaml
        on_error: raise
"""

# LightningCLI itself uses what jsonargparse has deprecated.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The YAML file, beside the folder of probes that it names."""
    (tmp_path / "probes").mkdir()
    Image.fromarray(draw_scenes(1, seed=9).images[0]).save(tmp_path / "probes" / "scene.png")
    (tmp_path / "probes" / "probes.csv").write_text("image,prompt\nscene.png,a red star\nscene.png,a blue circle\n")
    file = tmp_path / "training.yaml"
    file.write_text(CONFIG.format(folder=tmp_path))
    return file


def test_every_argument_can_be_given_in_yaml(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = yaml.safe_load(config.read_text())["trainer"]["callbacks"]
    arguments = entry["init_args"]
    assert arguments.keys() == inspect.signature(ClipCamCallback).parameters.keys()
    monkeypatch.setattr("sys.argv", ["train.py"])  # LightningCLI warns if it gets arguments from both places

    cli = LightningCLI(ModuleWithoutTokenizer, PairsModule, args=["fit", "--config", str(config)])

    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())  # as LightningCLI writes it for every run
    assert saved["trainer"]["callbacks"] == [entry]
    (callback,) = (each for each in cli.trainer.callbacks if isinstance(each, ClipCamCallback))
    attributes = {name: getattr(callback, name) for name in arguments}
    assert attributes.pop("target") == Contrast(negatives=("a blue star",))
    assert isinstance(tokenizer := attributes.pop("tokenizer"), WordTokenizer)
    assert tokenizer.context_length == 12
    assert list(attributes.pop("towers")) == [OwnTower]
    assert [type(sink) for sink in attributes.pop("sinks")] == [SilentSink]
    for name, value in attributes.items():
        expected = arguments[name]
        if isinstance(expected, list):
            assert list(value) == expected, name
        else:
            assert type(expected)(value) == expected, name

    snapshots = [Snapshot.load(file) for file in sorted((tmp_path / "evaluations").glob("step-*.safetensors"))]
    assert [snapshot.info.step for snapshot in snapshots] == [0, 3]
    assert snapshots[0].prompts == ("a red star", "a blue circle")
    info = snapshots[0].info
    assert (info.method, info.target) == ("layercam", "contrast(a blue star)")
    assert (info.score_scale, info.scales, info.flip, info.shift, info.fuse) == (100.0, (1.0, 1.5), True, True, "max")
    assert info.precision == "bfloat16"
    assert callback.monitor is not None
    assert (cli.trainer.global_step, callback.monitor.rule.max_drift) == (4, 0.5)
