"""Embeddings of prompts are kept while, and only while, the text tower stays as it is."""

import copy
from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.testing import assert_close

from clipcam_lightning import ClipModel, Probe, ProbeSet, find_clip
from clipcam_lightning.monitoring.texts import BLOCK, CYCLE, KeptTexts, checksum, checksum_text_tower, position_weights
from clipcam_lightning.probes.prepared import PreparedProbes
from clipcam_lightning.shapes_world.models import WordTokenizer
from clipcam_lightning.shapes_world.scenes import draw_scenes
from tests.support.zoo import huggingface


@pytest.fixture
def model(shapes_vit: open_clip.CLIP) -> Any:
    """A copy: other tests share the original."""
    return copy.deepcopy(shapes_vit)


def freeze_text(model: Any) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("visual."))


def frozen(model: Any) -> tuple[ClipModel, PreparedProbes, list[int]]:
    """A CLIP with a frozen text tower, its probes, and a list that grows with each call of the text tower.

    The calls are not counted by a hook, since with one nothing is kept.
    """
    freeze_text(model)
    clip, scenes = find_clip(model, tokenizer=WordTokenizer()), draw_scenes(3)
    probes = ProbeSet(Probe(*pair) for pair in zip(scenes.images, scenes.captions, strict=True))
    calls: list[int] = []
    encode_text = model.encode_text

    def encode_and_count(*arguments: Any, **options: Any) -> Tensor:
        calls.append(1)
        embeddings: Tensor = encode_text(*arguments, **options)
        return embeddings

    model.encode_text = encode_and_count
    return clip, probes.prepare(clip), calls


def test_texts_are_embedded_once_while_only_the_image_tower_changes(model: Any) -> None:
    clip, prepared, calls = frozen(model)
    kept = KeptTexts()

    first = kept(clip, prepared)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.mul_(1.1)
        model.logit_scale.add_(1)
    model.logit_scale.requires_grad_(True)
    again = kept(clip, prepared)

    assert len(calls) == 1
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.text_projection.data.mul_(1.001),  # without a trace in the version counter
        lambda model: model.token_embedding.weight.data[3, 5].add_(1e-3),
        lambda model: setattr(model, "positional_embedding", nn.Parameter(-model.positional_embedding.detach(), False)),
        lambda model: model.load_state_dict({**model.state_dict(), "ln_final.bias": model.ln_final.bias + 1}),
        lambda model: model.token_embedding.weight.data.copy_(model.token_embedding.weight.flip(0)),
        lambda model: model.text_projection.data.copy_(model.text_projection.T.clone()),
    ],
    ids=["data", "one value", "another parameter", "loaded", "rows in another order", "transposed"],
)
def test_a_changed_weight_is_noticed_although_it_is_frozen(model: Any, change: Callable[[Any], object]) -> None:
    clip, prepared, calls = frozen(model)
    kept = KeptTexts()
    kept(clip, prepared)

    with torch.no_grad():
        change(model)

    with torch.no_grad():
        assert_close(kept(clip, prepared), prepared.embed_texts(clip), atol=0, rtol=0)
    assert len(calls) == 3


def test_a_weight_may_begin_anywhere_in_a_larger_buffer(model: Any) -> None:
    clip, prepared, calls = frozen(model)
    bias = model.ln_final.bias
    buffer = torch.cat([torch.zeros(1), bias.detach()])
    bias.data = buffer[1:]
    kept = KeptTexts()
    kept(clip, prepared)
    kept(clip, prepared)
    assert len(calls) == 1

    buffer[7] += 1

    kept(clip, prepared)
    assert len(calls) == 2


@pytest.mark.parametrize("count", [0, 1, 2, 7, CYCLE, 2 * BLOCK, 2 * BLOCK + 2 * CYCLE + 2])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.uint8])
def test_every_value_and_its_place_change_a_checksum(count: int, kind: torch.dtype) -> None:
    """Also of zeros and ones, whose sum stays the same in any order."""
    values = (torch.rand(count) > 0.5).to(kind)
    weights = position_weights(torch.device("cpu"))
    before = int(checksum(values, weights))
    assert int(checksum(values.clone(), weights)) == before

    for i in range(0, count, count // 7 + 1):
        changed = values.clone()
        changed[i] = 1 - changed[i]
        assert int(checksum(changed, weights)) != before
    if count > 2:
        negated = -values if kind.is_floating_point else 1 - values
        assert int(checksum(negated, weights)) != before
        if not kind.is_floating_point:
            assert int(checksum(~values, weights)) != before
    for moved in (values.flip(0), values.roll(1), values.roll(-2)):
        assert (int(checksum(moved, weights)) == before) == torch.equal(moved, values)


def test_texts_of_a_tower_that_is_trained_are_embedded_each_time(model: Any) -> None:
    clip, prepared, calls = frozen(model)
    model.ln_final.bias.requires_grad_(True)
    kept = KeptTexts()

    kept(clip, prepared)
    kept(clip, prepared)

    assert len(calls) == 2


@pytest.mark.parametrize("kind", ["hook", "hidden module"])
def test_texts_are_not_kept_where_more_than_weights_may_decide(model: Any, kind: str) -> None:
    clip, prepared, calls = frozen(model)
    if kind == "hook":
        factor = torch.ones(64)
        model.ln_final.register_forward_hook(lambda _module, _inputs, output: output * factor)
    else:
        model.hidden = [nn.Linear(2, 2)]
    kept = KeptTexts()

    kept(clip, prepared)
    kept(clip, prepared)

    assert len(calls) == 2


def test_a_frozen_model_of_transformers_is_summed() -> None:
    assert checksum_text_tower(find_clip(huggingface.clip().requires_grad_(False))) is not None


def test_a_model_with_adapters_is_not_summed(model: Any) -> None:
    """Adapters are switched on and off without a change of a weight."""
    assert checksum_text_tower(find_clip(model.requires_grad_(False))) is not None

    adapted = get_peft_model(model, LoraConfig(target_modules=["c_fc"])).requires_grad_(False)

    assert checksum_text_tower(find_clip(adapted)) is None


def test_texts_of_functions_are_embedded_each_time(model: Any) -> None:
    """A function may read anything, also what is no weight."""
    freeze_text(model)
    tokenizer, factor = WordTokenizer(), torch.ones(64)

    def encode_image(clip: Any, images: Tensor) -> Tensor:
        return clip.encode_image(images)

    def encode_text(clip: Any, texts: list[str]) -> Tensor:
        return clip.encode_text(tokenizer(texts)) * factor

    clip = find_clip(model, encode_image=encode_image, encode_text=encode_text)
    prepared = ProbeSet([(draw_scenes(1).images[0], "a red circle")]).prepare(clip)
    kept = KeptTexts()
    before = kept(clip, prepared).clone()
    factor[:32] = -1

    assert not torch.equal(kept(clip, prepared), before)
