"""The noise floor: which changes are harmless, and how far maps move under them."""

import io
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from clipcam_lightning import ClipModel, Probe, ProbeSet, explain, find_clip
from clipcam_lightning.analysis.prompt_sensitivity import paraphrases
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.monitoring.explainer import LocalExplainer
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.monitoring.noise_floor import changed_images, harmless_drifts, noise_floor
from clipcam_lightning.shapes_world.models import WordTokenizer
from clipcam_lightning.shapes_world.scenes import draw_scenes
from clipcam_lightning.storage.jpeg import encode_jpeg


@pytest.fixture
def clip(shapes_vit: open_clip.CLIP) -> ClipModel:
    return find_clip(shapes_vit, tokenizer=WordTokenizer())


def probes(tokens: bool = False, count: int = 3) -> ProbeSet:
    scenes, tokenizer = draw_scenes(count, seed=5), WordTokenizer()
    return ProbeSet(
        Probe(image, caption, tokens=tokenizer(caption)[0] if tokens else None)
        for image, caption in zip(scenes.images, scenes.captions, strict=True)
    )


def maps_of(clip: ClipModel, images: Tensor, prompts: list[str], method: str = "auto") -> Tensor:
    pairs = zip(images, prompts, strict=True)
    return torch.cat([explain(clip, image[None], [prompt], method=method).maps[:, 0] for image, prompt in pairs])


def test_the_images_are_moved_by_a_pixel_and_made_brighter_and_compressed() -> None:
    images = torch.rand(2, 3, 16, 24) * 4 - 1

    moved, brighter = changed_images(images)

    assert_close(moved[..., 1:, 1:], images[..., :-1, :-1])
    assert_close(moved[..., 0, 1:], images[..., 0, :-1])
    assert_close(moved[..., 1:, 0], images[..., :-1, 0])
    low, high = (values((1, 2, 3), keepdim=True) for values in (images.amin, images.amax))
    expected = (1.1 * (images - low)).clamp_max(high - low) + low
    assert 0 < (brighter - expected).abs().mean() < 1  # JPEG keeps little of random pixels
    assert_close(brighter.mean((1, 2, 3)), expected.mean((1, 2, 3)), atol=0.05, rtol=0)
    assert (brighter.mean((1, 2, 3)) > images.mean((1, 2, 3)) + 0.1).all()


def test_a_noise_floor_that_cannot_be_measured_is_noted_and_the_evaluation_goes_on(clip: ClipModel) -> None:
    def strict(prompts: list[str]) -> Tensor:
        if any(len(prompt.split()) > 3 for prompt in prompts):
            raise RuntimeError("too long for context length")  # as a tokenizer does that does not truncate
        return WordTokenizer()(prompts)

    monitor = Monitor(probes())
    outcome = monitor.evaluate(LocalExplainer(replace(clip, tokenizer=strict)), step=0, epoch=0)

    (note,) = outcome.notes
    assert "noise floor could not be measured" in note.text
    assert "too long for context length" in note.text
    assert monitor.baseline is not None
    assert (monitor.baseline.noise_floor, len(monitor.baseline.images)) == (None, 3)


def test_a_blank_image_stays_blank() -> None:
    for changed in changed_images(torch.full((1, 3, 8, 8), 0.25)):
        assert_close(changed, torch.full((1, 3, 8, 8), 0.25))


@pytest.mark.parametrize("method", ["auto", "gradcam", "clip_surgery"])
def test_the_floor_is_the_mean_drift_over_all_changes(clip: ClipModel, method: str) -> None:
    """The expected values come from plain loops with one call per image, paraphrase and change.

    Prompts of one image change each other's maps in CLIP Surgery.
    """
    probe_set = probes()
    prepared = probe_set.prepare(clip)
    maps = maps_of(clip, prepared.images[:], probe_set.prompts, method)
    expected = []
    for i, prompt in enumerate(probe_set.prompts):
        changed = [maps_of(clip, images[i : i + 1], [prompt], method) for images in changed_images(prepared.images[:])]
        others = [other for other in paraphrases(prompt) if other != prompt]
        changed += [maps_of(clip, prepared.images[i : i + 1], [other], method) for other in others[:2]]
        assert len(changed) == 4
        drifts = [1 - torch.corrcoef(torch.stack([maps[i].flatten(), each.flatten()]))[0, 1] for each in changed]
        expected.append(torch.stack(drifts).mean())

    floor = noise_floor(LocalExplainer(clip, MapSettings(method=method)), prepared, maps)
    assert_close(floor, torch.stack(expected), atol=1e-4, rtol=1e-3)


def test_of_many_probes_a_sample_is_measured_and_the_others_get_its_median(clip: ClipModel) -> None:
    probe_set = probes(count=29)
    prepared = probe_set.prepare(clip)
    maps = maps_of(clip, prepared.images[:], probe_set.prompts)

    floor = noise_floor(LocalExplainer(clip), prepared, maps)

    measured = harmless_drifts(LocalExplainer(clip), prepared, maps).nanmean(0)
    sample = torch.tensor(sorted(range(29), key=lambda i: probe_set.prompts[i])[::4])
    others = torch.ones(29, dtype=torch.bool)
    others[sample] = False
    assert_close(floor[sample], measured[sample], atol=1e-4, rtol=1e-3)
    assert_close(floor[others], measured[sample].quantile(0.5).expand(21), atol=1e-4, rtol=1e-3)


def test_maps_of_a_trained_model_have_a_noise_floor(clip: ClipModel) -> None:
    probe_set = probes(count=24)
    prepared = probe_set.prepare(clip)

    floor = noise_floor(LocalExplainer(clip), prepared, maps_of(clip, prepared.images[:], probe_set.prompts))

    assert floor.median() > 0.005  # 0.025 was measured on all of them
    assert floor.min() > 1e-4  # 0.0017


def test_a_probe_of_token_ids_has_no_paraphrases(clip: ClipModel) -> None:
    probe_set = probes(tokens=True)
    prepared = probe_set.prepare(clip)
    maps = maps_of(clip, prepared.images[:], probe_set.prompts)

    assert harmless_drifts(LocalExplainer(clip), prepared, maps).shape == (2, 3)
    together = ProbeSet([*probes(tokens=True), *(Probe(each.image, each.prompt) for each in probes())])
    mixed = harmless_drifts(LocalExplainer(clip), together.prepare(clip), torch.cat([maps, maps]))
    assert mixed.isnan().tolist() == [[False] * 6] * 2 + [[True] * 3 + [False] * 3] * 2


def test_degenerate_maps_have_no_noise_floor(clip: ClipModel) -> None:
    prepared = probes().prepare(clip)
    floor = noise_floor(LocalExplainer(clip), prepared, torch.zeros(3, 8, 8))
    assert floor.isnan().all()


def test_a_jpeg_decodes_to_nearly_the_same_image() -> None:
    pixels = draw_scenes(1, seed=3).images[0]
    decoded = np.array(Image.open(io.BytesIO(encode_jpeg(Image.fromarray(pixels), 90))))
    assert decoded.shape == (64, 64, 3)
    assert np.abs(decoded.astype(int) - pixels).mean() < 8
