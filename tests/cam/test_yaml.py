"""Targets, towers and tokenizers can be written in YAML, as LightningCLI and the command line read them."""

from collections.abc import Sequence
from typing import Any

import open_clip
import pytest
from jsonargparse import ArgumentError, ArgumentParser

from clipcam_lightning import Contrast, LogSoftmax, Tower
from clipcam_lightning.cam.adapters import Tokenizer
from clipcam_lightning.cam.targets import Target, TargetLike
from clipcam_lightning.cam.towers.openai import OpenAiViT
from clipcam_lightning.cam.towers.timm import TimmViT
from clipcam_lightning.shapes_world.models import WordTokenizer

NEGATIVES = "{negatives: [a cat, a dog]}"
TARGETS: dict[str, str | Target] = {
    "contrast": "contrast",
    "clipcam_lightning.Contrast": Contrast(),
    "{class_path: clipcam_lightning.Contrast}": Contrast(),
    f"{{class_path: clipcam_lightning.Contrast, init_args: {NEGATIVES}}}": Contrast(("a cat", "a dog")),
    f"{{class_path: clipcam_lightning.LogSoftmax, init_args: {NEGATIVES}}}": LogSoftmax(("a cat", "a dog")),
    "{class_path: clipcam_lightning.LogSoftmax, init_args: {negatives: [a cat], temperature: 20}}": LogSoftmax(
        ("a cat",), 20.0
    ),
}
INVALID_TARGETS = (
    "logit",
    "{class_path: clipcam_lightning.Explanation}",
    "{class_path: clipcam_lightning.Contrast, init_args: {negatives: a cat}}",
    "{class_path: clipcam_lightning.Contrast, init_args: {negatives: [1]}}",
    "{class_path: clipcam_lightning.Contrast, init_args: {temperature: 20}}",
)


class Holder:
    """Takes the arguments that ClipCamCallback has as well, with the same annotations."""

    def __init__(
        self,
        target: TargetLike = "similarity",
        tokenizer: Tokenizer | None = None,
        towers: Sequence[type[Tower]] = (),
    ) -> None:
        self.target = target
        self.tokenizer = tokenizer
        self.towers = towers


def build_holder(yaml: str) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Holder, "holder")
    indented = "\n".join(f"  {line}" for line in yaml.splitlines())
    return parser.instantiate(parser.parse_string(f"holder:\n{indented}\n")).holder


@pytest.mark.parametrize("yaml", TARGETS)
def test_a_target_is_built_from_its_name_or_class(yaml: str) -> None:
    assert build_holder(f"target: {yaml}").target == TARGETS[yaml]


@pytest.mark.parametrize("yaml", TARGETS)
def test_a_target_is_built_for_a_single_argument(yaml: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--target", type=TargetLike)

    assert parser.instantiate(parser.parse_args([f"--target={yaml}"])).target == TARGETS[yaml]


@pytest.mark.parametrize("yaml", INVALID_TARGETS)
def test_an_invalid_target_is_rejected(yaml: str) -> None:
    with pytest.raises(ArgumentError, match="target"):
        build_holder(f"target: {yaml}")


def test_a_target_survives_a_round_trip_through_the_saved_configuration() -> None:
    """LightningCLI saves the configuration of a run, from which the run must be repeatable."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--target", type=TargetLike)
    (yaml,) = (each for each, target in TARGETS.items() if target == LogSoftmax(("a cat",), 20.0))

    saved = parser.dump(parser.parse_args([f"--target={yaml}"]))

    assert parser.instantiate(parser.parse_string(saved)).target == TARGETS[yaml]


def test_towers_are_import_paths() -> None:
    holder = build_holder(
        "towers:\n- clipcam_lightning.cam.towers.openai.OpenAiViT\n- clipcam_lightning.cam.towers.timm.TimmViT"
    )

    assert list(holder.towers) == [OpenAiViT, TimmViT]
    with pytest.raises(ArgumentError, match="towers"):
        build_holder("towers: [clipcam_lightning.Contrast]")


def test_a_tokenizer_is_the_import_path_of_a_function_or_a_class_with_arguments() -> None:
    assert build_holder("tokenizer: open_clip.tokenize").tokenizer is open_clip.tokenize
    words = build_holder("tokenizer: clipcam_lightning.shapes_world.models.WordTokenizer").tokenizer
    assert isinstance(words, WordTokenizer)
    tokenizer = build_holder(
        "tokenizer: {class_path: open_clip.SimpleTokenizer, init_args: {context_length: 32}}"
    ).tokenizer
    assert isinstance(tokenizer, open_clip.SimpleTokenizer)
    assert tokenizer(["a cat"]).shape == (1, 32)
    assert build_holder("tokenizer: null").tokenizer is None
