"""Snapshots of an explanation: the maps are kept bit for bit, and graded only where that is possible."""

from pathlib import Path

import numpy as np
import torch

from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.explanation import Explanation
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.monitoring.snapshots import take_snapshot
from clipcam_lightning.probes.probe import Probe
from clipcam_lightning.probes.probe_set import ProbeSet


def test_maps_of_probes_with_a_mask_are_graded_and_degenerate_ones_are_misses(clip: ClipModel) -> None:
    """Cell (2, 5) of 8x8 is hot with 3, cell (6, 1) with 1; the box is exactly cell (2, 5)."""
    box = (40, 16, 48, 24)
    hit = torch.zeros(8, 8)
    hit[2, 5], hit[6, 1] = 3, 1
    maps = torch.stack([hit, hit.T, hit, torch.zeros(8, 8), torch.full((8, 8), torch.nan)])
    probes = ProbeSet(Probe(np.full((64, 64, 3), i, np.uint8), f"p{i}", box=None if i == 2 else box) for i in range(5))
    explanation = Explanation(
        maps[:, None],
        torch.arange(5.0)[:, None] / 10,
        ("l",),
        "gradcam",
        "similarity",
        (1.0, 1.5),
        True,
        "max",
        9.0,
        True,
        embeddings=torch.tensor([[0.0, 2.0], [0.3, 0.2], [-1.0, 0.0], [0.1, 0.1], [0.5, -0.1]]),
    )
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])[:, None]

    snapshot = take_snapshot(explanation, probes, probes.prepare(clip), texts, clip, step=7, epoch=2)

    nan = torch.nan
    assert torch.equal(snapshot.maps[:4], maps[:4])
    torch.testing.assert_close(snapshot.energy_inside_mask, torch.tensor([0.75, 0, nan, 0, 0]), equal_nan=True)
    torch.testing.assert_close(snapshot.pointing, torch.tensor([1.0, 0, nan, 0, 0]), equal_nan=True)
    torch.testing.assert_close(snapshot.similarity, torch.arange(5.0) / 10)
    assert snapshot.closest_prompts == ("p1", "p0", "p2", "p0", "p0"), "of equal prompts the first"
    assert snapshot.names == ("p0", "p1", "p2", "p3", "p4") == snapshot.prompts
    assert (snapshot.info.step, snapshot.info.epoch, snapshot.info.digest) == (7, 2, probes.digest)
    assert (snapshot.info.layers, snapshot.info.dtype) == (("l",), "float32")
    assert (snapshot.info.scales, snapshot.info.flip, snapshot.info.fuse) == ((1.0, 1.5), True, "max")
    assert (snapshot.info.score_scale, snapshot.info.shift) == (9, True)


def test_a_snapshot_of_a_real_model_is_loaded_as_it_was_saved(tmp_path: Path, clip: ClipModel) -> None:
    rng = np.random.default_rng(0)
    probes = ProbeSet((rng.integers(0, 256, (70, 90, 3), np.uint8), text) for text in ("a red circle", "a blue star"))
    prepared = probes.prepare(clip)
    texts = prepared.embed_texts(clip).detach()
    explanation = explain(clip, prepared.images[:], texts)
    snapshot = take_snapshot(explanation, probes, prepared, texts, clip, step=0, epoch=0)
    snapshot.save(tmp_path / "s")

    loaded = Snapshot.load(tmp_path / "s")

    assert torch.equal(loaded.maps, explanation.maps[:, 0])
    with torch.no_grad():
        cosines = clip.embed_images(prepared.images[:]) @ clip.embed_texts(probes.prompts).T
    assert loaded.closest_prompts == tuple(probes.prompts[i] for i in cosines.argmax(1).tolist())
    assert loaded.info == snapshot.info
    assert loaded.info.fingerprint == clip.fingerprint
    assert set(loaded.info.versions) >= {"clipcam-lightning", "torch"}
