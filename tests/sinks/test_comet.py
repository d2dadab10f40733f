"""Comet gets metrics, images and reports; they are read back from the archive of an offline experiment."""

import json
import zipfile
from pathlib import Path

import pytest

from tests.support.loggers import CLIENT_WARNINGS, STEPS, make_alarming_callback, make_comet_logger
from tests.support.modules import FineTuning, fit

pytestmark = [pytest.mark.slow, *CLIENT_WARNINGS]


def test_comet_gets_metrics_images_and_report(tmp_path: Path) -> None:
    callback, comet_logger = make_alarming_callback(), make_comet_logger(tmp_path)
    fit(FineTuning(), tmp_path, callback, logger=comet_logger, default_root_dir=tmp_path)
    comet_logger.experiment.end()
    (archive,) = (tmp_path / "comet").glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        messages = [json.loads(line) for line in file.read("messages.json").splitlines()]
    payloads = [message["payload"] for message in messages]
    drift = [each["metric"] for each in payloads if (each.get("metric") or {}).get("metricName") == "clipcam/drift"]
    # Comet's client keeps one step for all threads: a loss that is logged meanwhile may set it to that of its batch.
    assert [metric["step"] for metric in drift] == pytest.approx(STEPS, abs=1)
    assert callback.report is not None
    assert drift[-1]["metricValue"] == pytest.approx(callback.report.drift)
    text = json.dumps(payloads)
    names = [f"clipcam_maps/{probe.name}" for probe in callback.report.probes]
    for name in (*names, "clipcam_contact_sheet/all_probes"):
        assert text.count(f'"{name}') >= len(STEPS)
    assert "clipcam/report.html" in text
