"""Results are kept as long as the code that they come from is the same."""

from pathlib import Path

import pytest

from benchmarks.sources import hash_sources

CODE = 'LIMIT = 3\n\n\ndef double(value):\n    """Double it."""\n    return 2 * value\n'


def hash_text(folder: Path, text: str) -> str:
    (folder / "code.py").write_text(text)
    return hash_sources([folder / "code.py"])


@pytest.mark.parametrize(
    "text", [CODE.replace("Double it.", "Multiply by two."), f'"""A module."""\n{CODE}', f"# A comment\n{CODE}"]
)
def test_texts_and_comments_do_not_change_a_hash(text: str, tmp_path: Path) -> None:
    assert hash_text(tmp_path, text) == hash_text(tmp_path, CODE)


@pytest.mark.parametrize("text", [CODE.replace("3", "4"), CODE.replace("2 *", "3 *")])
def test_code_changes_a_hash(text: str, tmp_path: Path) -> None:
    assert hash_text(tmp_path, text) != hash_text(tmp_path, CODE)
