"""The text of the project keeps to one vocabulary: one term per concept, the same in code, messages and docs."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".md", ".js", ".css", ".jinja", ".toml", ".cff", ".yaml"}
RETIRED = {  # a pattern of the old term, and the term that replaced it
    r"\ba look\b|\blooks? (at|of) the (run|probe)|\blooks so far\b|\bLook\b": "evaluation",
    r"\bfigures?\b(?!\()": "metric",
    r"\bpictures?\b": "image",
    r"\balarmed\b|\bbreaks? the rule\b": "flagged, or alarm of an evaluation",
    r"\bgathers where\b": "concentrates",
    r"\bcommon.gain\b": "shared gain",
    r"\bpeak.gain\b": "concentration",
    r"\bwatchers?\b": "monitor, session or callback",
    r"\bwordings?\b|\bworded\b": "prompt template or paraphrase",
    r"\bdialects?\b": "adapter",
    r"\bput.together\b": "gathered",
    r"\bsays? nothing\b|\bblind\b": "degenerate, or without a valid baseline",
    r"\bthe gravest\b": "the most severe",
    r"\bnot served\b": "not supported",
    r"\bmended\b": "fixed",
    r"\btrying it out\b": "perturbation-based",
}
# Words that mean something else where they stand.
ELSEWHERE = re.compile(
    r"a picture of \{\}|<figure|</figure|figcaption|\"figure\"|dd, figure, table|colou?r-?blind|\[\"picture,prompt\""
    r"|matplotlib\.figure|matplotlib Figure|import Figure|[\"(]Figure[\")]"
)


def text_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    paths = [ROOT / name for name in listed]
    return [path for path in paths if path.suffix in SUFFIXES and path.exists() and path != Path(__file__)]


@pytest.mark.parametrize("pattern", RETIRED, ids=RETIRED.values())
def test_a_retired_term_is_not_used(pattern: str) -> None:
    term = re.compile(pattern, re.IGNORECASE if pattern.islower() else 0)
    uses = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in text_files()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if term.search(ELSEWHERE.sub("", line))
    ]
    assert not uses, f"write {RETIRED[pattern]!r} instead:\n" + "\n".join(uses[:20])
