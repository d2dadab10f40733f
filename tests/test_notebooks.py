"""The notebooks run from top to bottom, and are stored as they ran."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MAX_BYTES = 300_000

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def test_there_are_three_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "compare_two_checkpoints",
        "explain_your_image",
        "fine_tune_with_the_callback",
    ]


@notebooks
def test_a_notebook_is_stored_as_it_ran(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("text/html" in output.get("data", {}) for output in outputs)
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    assert str(Path.home()) not in path.read_text()
    assert path.stat().st_size < MAX_BYTES


@pytest.mark.slow
@notebooks
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # jupyter_client and tqdm warn of what is not installed
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()


SHOWN = """
from IPython.display import display
from PIL import Image

from clipcam_lightning import explain
from clipcam_lightning.shapes_world import WordTokenizer, trained_clip

explanation = explain(trained_clip("vit"), Image.new("RGB", (8, 8)), "a red circle", tokenizer=WordTokenizer())
"""


@pytest.mark.slow
def test_a_notebook_shows_an_explanation_and_its_plot_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    sources = [SHOWN, "explanation", "explanation.show()", "explanation.plot()", "import matplotlib.pyplot as plt"]
    sources += ["plt.plot([1, 2])", "explanation.plot()"]  # after pyplot has taken over the display of plots
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])

    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()

    kinds = [[set(output.get("data", {})) - {"text/plain"} for output in cell.outputs] for cell in notebook.cells]
    html, png = [{"text/html"}], [{"image/png"}]
    assert [kinds[1], kinds[2], kinds[3], kinds[6]] == [html, html, png, png]
