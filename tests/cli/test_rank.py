"""``clipcam rank`` prints the methods with the best first, and writes them as JSON and HTML."""

import json
from pathlib import Path

import open_clip
import pytest

from tests.support.shell import OPTIONS, make_project, run_clipcam

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, shapes_vit: open_clip.CLIP) -> Path:
    return make_project(tmp_path_factory.mktemp("project"), shapes_vit)


def test_the_best_method_is_recommended_and_the_reports_have_all(project: Path) -> None:
    options = ("--methods", "rollout", "decomposition", "occlusion", "--budget", "20")
    done = run_clipcam(
        project, "rank", "--probes", "probes", *OPTIONS, "before.pt", *options, "--json", "a.json", "--html", "a.html"
    )

    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads((project / "a.json").read_text())
    layers = content["recommended"]["layers"]
    assert [row["method"] for row in content["methods"]] == ["decomposition", "rollout"]
    assert content["methods"][1]["problems"] == ["does not depend on the prompt"]
    assert content["methods"][0]["agreement"] is None
    assert content["methods"][0]["sufficiency"] is None  # both probes have one prompt
    assert content["methods"][0]["effect"] == content["methods"][0]["necessity"]
    assert content["masked"] == 2
    assert content["left_out"] == {"occlusion": "costs 65 forwards per map, more than the budget of 20"}
    setting = 'method="decomposition", layers=[' + ", ".join(f'"{layer}"' for layer in layers) + "]"
    assert f"recommended: {setting}\n" in done.stdout
    assert "left out: occlusion costs 65 forwards" in done.stdout
    assert [line.partition(":")[0] for line in done.stdout.splitlines() if ": mean " in line or ": share " in line] == [
        *("Pointing", "Energy", "Effect", "Insertion", "Deletion", "Shuffled weights", "Other prompt", "Degenerate")
    ]
    page = (project / "a.html").read_text()
    assert page.count("<img") == 1 + 2 * (1 + 2)  # the colour scale, and of each probe the input and two maps
    assert "method=&#34;decomposition&#34;" in page
    assert "<script" not in page


def test_a_wrong_method_is_refused_with_a_suggestion(project: Path) -> None:
    done = run_clipcam(project, "rank", "--probes", "probes", *OPTIONS, "before.pt", "--methods", "gradcamm")

    assert done.returncode == 2
    assert done.stderr.endswith("Did you mean 'gradcam'?\n")
