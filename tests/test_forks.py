"""A test with the marker ``forks`` runs in a process of its own."""

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PLUGIN = ("-p", "tests.support.forks", "-p", "no:clipcam")
TESTS = """
import os
from pathlib import Path
import pytest

def note(name):
    Path(name).write_text(str(os.getpid()))

def test_plain():
    note("plain")

@pytest.mark.forks
@pytest.mark.parametrize("name", ["forks, once", "forks twice"])
def test_forks(name):
    note(name)

@pytest.mark.forks
def test_fails():
    assert "apples" == "pears"
"""


@pytest.fixture
def outer(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    pytester.makeini("[pytest]\nmarkers =\n    forks: forks the process")
    pytester.makepyfile(TESTS)
    return pytester


def test_marked_tests_run_each_in_a_process_of_its_own(outer: pytest.Pytester) -> None:
    result = outer.runpytest_subprocess(*PLUGIN)

    result.assert_outcomes(passed=3, failed=1)
    assert len({(outer.path / name).read_text() for name in ("plain", "forks, once", "forks twice")}) == 3


def test_a_failure_in_the_other_process_is_shown(outer: pytest.Pytester) -> None:
    result = outer.runpytest_subprocess(*PLUGIN, "-k", "test_fails")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 'apples' == 'pears'*"])
