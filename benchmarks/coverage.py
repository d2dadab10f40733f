"""Which image encoders are explained, by which tower and method: CLIPs of transformers and open_clip, trunks of timm.

Each model is built small where its library allows that, with random weights, and explained once. A model that is not
explained must be refused in one line; any other exception ends the run.

Run it: python -m benchmarks.coverage  (about ten minutes on two cores; writes docs/coverage.md; ``--quick`` for a few
models, which writes nothing)
"""

import argparse
import gc
import importlib
import inspect
import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import transformers
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from clipcam_lightning import ClipCamError, explain, find_clip

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
MAX_PARAMETERS = 500_000_000  # of a model of open_clip that is built
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
    "num_layers": 2,
}
TRUNKS = (
    "beit_base_patch16_224", "cait_xxs24_224", "coatnet_nano_rw_224", "convit_tiny", "convmixer_768_32",
    "convnext_atto", "convnextv2_atto", "crossvit_tiny_240", "cspresnet50", "davit_tiny", "deit_tiny_patch16_224",
    "densenet121", "dla34", "edgenext_xx_small", "efficientformer_l1", "efficientnet_b0", "eva02_tiny_patch14_224",
    "fastvit_t8", "focalnet_tiny_srf", "ghostnet_100", "hrnet_w18_small", "inception_v3", "levit_128",
    "maxvit_tiny_tf_224",
    "mixer_s32_224", "mobilenetv3_small_100", "mobilevit_xs", "nfnet_f0", "pit_ti_224", "poolformer_s12",
    "pvt_v2_b0", "regnety_004", "repvgg_a0", "resnet18", "resnext50_32x4d", "rexnet_100", "samvit_base_patch16_224",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "tiny_vit_5m_224", "twins_pcpvt_small", "vgg11",
    "vit_small_patch14_dinov2", "vit_tiny_patch16_224", "volo_d1_224", "xception41", "xcit_nano_12_p16_224",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What happened to one model.

    Attributes:
        name: of the model.
        tower: name of the class of its tower; empty if the model was refused.
        grid: height and width of a map in cells.
        method: that ``auto`` stands for.
        layers: that it reads.
        refusal: why the model was refused.
    """

    name: str
    tower: str = ""
    grid: str = ""
    method: str = ""
    layers: str = ""
    refusal: str = ""


class Trunk(nn.Module):
    """An image encoder alone, beside texts that are embeddings already."""

    def __init__(self, image_encoder: nn.Module) -> None:
        super().__init__()
        self.image_encoder = image_encoder

    def encode_image(self, images: Tensor) -> Tensor:
        features: Tensor = self.image_encoder(images)
        return features

    def encode_text(self, tokens: Tensor) -> Tensor:
        return tokens.float()


def explain_one(name: str, build: Callable[[], nn.Module]) -> Row:
    """Explain a model once, with random images and prompt embeddings."""
    torch.manual_seed(0)
    try:
        clip = find_clip(build().eval())
        images = torch.randn(1, 3, *clip.tower.input_size)
        explanation = explain(clip, images, torch.randn(2, clip.embed_images(images).shape[1]))
    except ClipCamError as error:
        return Row(name, refusal=str(error).partition(" Supported: ")[0])
    height, width = explanation.maps.shape[-2:]
    layers = explanation.layers if len(explanation.layers) < 3 else (f"{len(explanation.layers)} layers",)
    return Row(name, type(clip.tower).__name__, f"{height}x{width}", explanation.method, ", ".join(layers))


def list_transformers() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """List the classes of transformers that embed both images and texts."""
    models = Path(transformers.__file__).parent / "models"
    for file in sorted(models.glob("*/modeling_*.py")):
        source = file.read_text()
        if "def get_text_features" not in source or "def get_image_features" not in source:
            continue
        module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
        for name in re.findall(r"^class (\w+)\(", source, flags=re.M):
            kind = getattr(module, name)
            if (
                inspect.isclass(kind)
                and issubclass(kind, transformers.PreTrainedModel)
                and all(hasattr(kind, method) for method in ("get_image_features", "get_text_features"))
            ):
                yield name, lambda kind=kind: kind(_shrink(kind))


def list_open_clip() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """List the configurations of open_clip that need no download and are not too large."""
    for name in open_clip.list_models():
        build = partial(open_clip.create_model, name, load_weights=False, pretrained_text=False)
        try:
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in build(device="meta").parameters())
        except Exception as error:  # its text tower is described on a hub
            print(f"{name} cannot be built here: {type(error).__name__}", flush=True)
            continue
        if size <= MAX_PARAMETERS:
            yield name, build


def list_timm() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """List some networks of timm, one of each family."""
    for name in TRUNKS:
        yield name, lambda name=name: Trunk(timm.create_model(name, num_classes=0))


def _shrink(kind: Any) -> Any:
    if kind.__name__ == "VisionTextDualEncoderModel":
        vision = transformers.ViTConfig(**_without(SMALL, "projection_dim", "num_layers"))
        text = transformers.BertConfig(**_without(SMALL, "projection_dim", "num_layers"))
        return kind.config_class.from_vision_text_configs(vision, text)
    config = kind.config_class()
    for part in (config, *(each for each in vars(config).values() if isinstance(each, transformers.PretrainedConfig))):
        for name, value in SMALL.items():
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, value)
    return config


def _without(values: dict[str, int], *names: str) -> dict[str, int]:
    return {name: value for name, value in values.items() if name not in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="explain a few models and write nothing")
    quick = parser.parse_args().quick
    warnings.filterwarnings("ignore")
    libraries = {"transformers": list_transformers, "open_clip": list_open_clip, "timm": list_timm}
    page = [
        "# Tested models",
        "",
        "Written by `python -m benchmarks.coverage`. Every model has random weights and was explained once. "
        "`TracedTower` stands for an image encoder of an unknown kind, whose layers are found by tracing one pass. Two "
        "kinds of configurations of open_clip were left out: those of more than 500 million parameters, and those that "
        "need a download for their text tower.",
    ]
    for library, list_models in libraries.items():
        rows = []
        for name, build in islice(list_models(), 3 if quick else None):
            rows.append(explain_one(name, build))
            gc.collect()
            print(rows[-1], flush=True)
        page += ["", f"## {library} {version(library.replace('open_clip', 'open_clip_torch'))}", "", _tabulate(rows)]
    if not quick:
        PAGE.write_text("\n".join(page))


def _tabulate(rows: list[Row]) -> str:
    table = Table("model", "tower", "grid", "`auto`", "layers", box=MARKDOWN)
    for row in rows:
        table.add_row(
            f"`{row.name}`", row.tower or "refused", row.grid, row.method, row.layers or row.refusal.replace("|", "/")
        )
    text = io.StringIO()
    Console(width=100_000, file=text).print(table)
    lines = text.getvalue().strip().splitlines()
    return "\n".join(re.sub(r"-{4,}", "---", re.sub(r" {2,}", " ", line)) for line in lines) + "\n"


if __name__ == "__main__":
    main()
