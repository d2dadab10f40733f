"""Scores of fine-tunings are kept as long as the code that they come from is the same."""

from pathlib import Path

import pytest

from benchmarks import drift_runs
from benchmarks.drift_runs import Run, add_score, read_scores
from benchmarks.finetunes import FineTune


def test_scores_are_read_again_until_the_code_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_runs, "SCORES", tmp_path / "scores.json.gz")
    runs = [
        Run(FineTune("shapes", "class token", kind, 1000), used, False, {"8 probes": {"our rule": [0.5, 1.5]}})
        for kind, used in (("stamp", 2), ("usual", None))
    ]
    assert read_scores() == {}

    for each in runs:
        add_score(each)

    assert read_scores() == {each.finetune: each for each in runs}
    assert [each.role for each in read_scores().values()] == ["used", "harmless"]
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json.gz"]
    monkeypatch.setattr(drift_runs, "SOURCES", "other")
    assert read_scores() == {}
