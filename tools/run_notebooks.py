"""Run the notebooks of ``examples/`` and store their outputs.

Warnings are not stored, because they name folders of the machine, nor is an image in more than one format.

Run it:  python tools/run_notebooks.py
"""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"


def main() -> None:
    """Run each notebook in a folder of its own, as it writes files."""
    os.environ["PYTHONWARNINGS"] = "ignore"
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": folder}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # when it ran
            if cell.cell_type == "code":
                cell.outputs = [_thin(output) for output in cell.outputs if output.get("name") != "stderr"]
        nbformat.write(notebook, path)


def _thin(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    data = output.get("data", {})
    if "image/jpeg" in data:
        data.pop("image/png", None)
    return output


if __name__ == "__main__":
    main()
