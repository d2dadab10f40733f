"""Probe sets, images and masks in stores."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from upath import UPath

from clipcam_lightning.cam.decoding import decode_rgb
from clipcam_lightning.cam.writing import write_atomically
from clipcam_lightning.errors import ClipCamError, ConfigError, ProbeError, SnapshotError
from clipcam_lightning.probes.probe import Probe
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.storage.reading import read_bytes

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
MASK = np.arange(12 * 16).reshape(12, 16) % 5 == 0
CSV = "image,prompt,name,mask\ncat.png,a cat,,\n../shared/dog.png,a dog,rex,masks/dog.png\n"


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def put_probes(folder: str, manifest: str, text: str) -> str:
    """Write two images, one of them beside the folder, a mask and a manifest; return the folder."""
    write_atomically(as_path(f"{folder}/probes/cat.png"), png(PIXELS[0]))
    write_atomically(as_path(f"{folder}/shared/dog.png"), png(PIXELS[1]))
    write_atomically(as_path(f"{folder}/probes/masks/dog.png"), png(MASK))
    write_atomically(as_path(f"{folder}/probes/{manifest}"), text.encode())
    return f"{folder}/probes"


@pytest.fixture
def probes() -> ProbeSet:
    return ProbeSet([Probe(PIXELS[0], "a cat", "cat"), Probe(PIXELS[1], "a dog", "rex", mask=MASK)])


@pytest.mark.parametrize("manifest", ["probes.csv", "probes.jsonl"])
def test_a_manifest_and_its_images_are_read_from_a_store(store: str, manifest: str, probes: ProbeSet) -> None:
    rows = [
        {"image": "cat.png", "prompt": "a cat"},
        {"image": f"{store}/shared/dog.png", "prompt": "a dog", "name": "rex", "mask": "masks/dog.png"},
    ]
    text = CSV if manifest.endswith("csv") else "\n".join(map(json.dumps, rows))
    folder = put_probes(store, manifest, text)

    for place in (folder, f"{folder}/", f"{folder}/{manifest}", UPath(folder)):
        loaded = ProbeSet(place)
        assert loaded == probes
        assert loaded.names == probes.names


def test_a_saved_set_is_read_from_a_store(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probes: ProbeSet
) -> None:
    monkeypatch.chdir(tmp_path)
    probes.save(f"{store}/a/probes.safetensors")
    probes.save(tmp_path / "local.safetensors")

    assert ProbeSet(f"{store}/a/probes.safetensors") == probes
    assert read_bytes(as_path(f"{store}/a/probes.safetensors")) == (tmp_path / "local.safetensors").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["local.safetensors"]


def test_an_image_and_a_mask_are_given_by_url(store: str, tmp_path: Path, probes: ProbeSet) -> None:
    put_probes(store, "probes.csv", CSV)
    cat, dog, mask = f"{store}/probes/cat.png", f"{store}/shared/dog.png", f"{store}/probes/masks/dog.png"
    (tmp_path / "probes.csv").write_text(f"image,prompt,name,mask\n{cat},a cat,,\n{dog},a dog,rex,{mask}\n")

    assert np.array_equal(decode_rgb(cat), PIXELS[0])
    assert ProbeSet([(cat, "a cat"), Probe(UPath(dog), "a dog", "rex", mask=UPath(mask))]) == probes
    assert ProbeSet([(cat, "a cat")]).names == ["cat"]
    assert ProbeSet(tmp_path) == probes


def test_what_a_store_does_not_have_is_named(s3: str) -> None:
    put_probes(s3, "probes.csv", "image,prompt\nnone.png,a cat\n")
    write_atomically(as_path(f"{s3}/text/cat.png"), b"no image")
    places = {
        f"{s3}/none": f"{s3}/none does not exist; give a folder with probes.csv or probes.jsonl, or a file of",
        f"{s3}/none/probes.csv": f"{s3}/none/probes.csv cannot be read: ",
        f"{s3}/text": f"{s3}/text must hold one manifest, probes.csv or probes.jsonl (neither found).",
        "s3://no-such-bucket/probes": "s3://no-such-bucket/probes does not exist; give a folder",
        f"{s3}/probes": f"probes.csv line 2: the image {s3}/probes/none.png does not exist.",
        f"{s3}/text/cat.png": f"{s3}/text/cat.png cannot be read as a probe set: ",
    }
    for place, message in places.items():
        with pytest.raises((ProbeError, SnapshotError)) as raised:
            ProbeSet(place)
        assert str(raised.value).startswith(message)
        assert "\n" not in str(raised.value)
    with pytest.raises(
        ConfigError, match=r"the image s3://\S+/text/cat.png cannot be read: cannot identify image file"
    ):
        decode_rgb(f"{s3}/text/cat.png")


def test_a_server_that_does_not_answer_is_named(unreachable: str) -> None:
    for place in (f"{unreachable}/probes", [(f"{unreachable}/cat.png", "a cat")]):
        with pytest.raises(ClipCamError, match=r"s3://bucket/\S+ cannot be read: .*Could not connect to the endpoint"):
            ProbeSet(place)


def test_a_url_that_pathlib_has_damaged_is_explained() -> None:
    for place in (Path("s3://bucket/probes"), [(Path("s3://bucket/cat.png"), "a cat")]):
        with pytest.raises(ClipCamError, match="give the URL as text: 's3://bucket/"):
            ProbeSet(place)
    with pytest.raises(ProbeError, match=r"probe 1: foo://cat\.png: fsspec has no protocol 'foo'"):
        ProbeSet([("foo://cat.png", "a cat")])
