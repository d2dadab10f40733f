"""Snapshots and reports show themselves."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.errors import SnapshotError
from clipcam_lightning.storage.jpeg import encode_jpeg
from tests.support.drawn_images import TEXTS, pixels_of, probe_drift
from tests.support.known_maps import COLORS, NAMES, PROMPTS, images, known_evaluations

MARKUP = "<img src=x onerror=alert(1)>"


def snapshot(with_images: bool = True) -> Snapshot:
    """The last evaluation of the known maps; the map of "vanishes" is all zero."""
    last = known_evaluations()[-1].snapshot
    files = tuple(encode_jpeg(Image.fromarray(image.permute(1, 2, 0).numpy()), 95) for image in images())
    return replace(last, images=files) if with_images else last


def report_of(count: int = 1, **changes: object) -> DriftReport:
    probes = tuple(probe_drift(**{"name": f"probe-{i}", **changes}) for i in range(count))
    return DriftReport(probes, DriftRule(max_drift=0.3), step=9, baseline_step=0)


def test_a_snapshot_shows_its_maps_over_its_images_in_their_proportions() -> None:
    (row,) = snapshot()._gallery(160, 10).rows

    assert [tile.caption for tile in row] == list(PROMPTS)
    assert [tile.image.size for tile in row] == [(160, 96)] * len(NAMES)
    still = pixels_of(row[NAMES.index("still")].image)  # its bottom left corner is lit
    assert still[90, 5].max() > still[5, 150].max() + 60


def test_a_snapshot_without_images_shows_its_maps_over_grey(written: list[str]) -> None:
    (row,) = snapshot(with_images=False)._gallery(160, 10).rows

    assert [tile.image.size for tile in row] == [(160, 96)] * len(NAMES)
    assert "nothing in this image raises" in " ".join(written), "the state of the map that vanished"
    assert len(COLORS) < len(NAMES)


def test_a_snapshot_says_how_much_of_a_map_is_on_the_object_where_that_is_known() -> None:
    known = snapshot()
    energy = known.energy_inside_mask.clone()
    energy[0] = 0.256

    (row,) = replace(known, energy_inside_mask=energy)._gallery(64, 10).rows

    assert row[0].details == f"similarity {known.similarity[0]:.2f} · 26 % on object"
    assert row[1].details == f"similarity {known.similarity[1]:.2f}"


def test_a_damaged_image_of_a_snapshot_names_its_probe() -> None:
    damaged = replace(snapshot(), images=(b"no jpeg",) * len(NAMES))

    with pytest.raises(SnapshotError, match="the image of probe 'unknown' is damaged"):
        damaged.draw()


def test_a_report_shows_the_verdict_and_flagged_probes_first() -> None:
    calm, flagged = probe_drift(name="calm", drift=0.1), probe_drift(name="moved", reason="its map moved", severity=2.0)
    report = DriftReport((calm, flagged), DriftRule(max_drift=0.3), step=9, baseline_step=0)

    html = report._repr_html_()

    assert html.index("moved") < html.index("calm")
    assert "its map moved" in html
    assert re.findall(r"600;background:#c1121f\">([\w ]+)<", html) == ["alarm", "its map moved"]


def test_a_report_without_alarm_has_no_column_of_reasons() -> None:
    html = report_of(severity=0.1)._repr_html_()

    assert "no alarm" in html
    assert "Flagged because" not in html


def test_a_report_of_many_probes_shows_the_first_and_counts_the_rest() -> None:
    html = report_of(50)._repr_html_()

    assert html.count("<tr>") == 1 + 20
    assert "30 more probes" in html


@pytest.mark.parametrize("text", [*(text for text in TEXTS.values() if text.strip()), MARKUP])
def test_a_prompt_is_data_in_a_report(text: str) -> None:
    plain, odd = report_of(), report_of(prompt=text, name=text)

    assert re.findall(r"<\w+", odd._repr_html_()) == re.findall(r"<\w+", plain._repr_html_())
    odd._repr_html_().encode()
    odd.plot().savefig(io.BytesIO())  # warnings of missing glyphs are errors


def test_a_plot_has_a_bar_per_probe_flagged_ones_first_and_red() -> None:
    calm = probe_drift(name="calm", drift=0.1)
    flagged = probe_drift(name="moved", drift=0.9, reason="its map moved", severity=2.0)
    unknown = probe_drift(name="unknown", drift=1.0)
    report = DriftReport((calm, unknown, flagged), DriftRule(max_drift=0.3), step=9, baseline_step=0)

    (axes,) = report.plot().axes

    assert [label.get_text() for label in axes.get_yticklabels()] == ["moved", "unknown", "calm"]
    assert [bar.get_width() for bar in axes.patches] == [0.9, 1.0, 0.1]
    reds = [bool(np.allclose(bar.get_facecolor()[:3], (0xC1 / 255, 0x12 / 255, 0x1F / 255))) for bar in axes.patches]
    assert reds == [True, False, False]


def test_outside_of_a_notebook_a_report_prints_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(severity=0.1)

    report.show()

    assert capsys.readouterr().out == f"{report}\n"
