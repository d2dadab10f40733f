"""Run the tests with each Python that the package supports, and with the lowest versions that it allows.

    nox --session tests-3.12                      all tests with Python 3.12
    nox --session lowest -- -m "not slow"         what follows -- goes to pytest

An environment with torch takes several gigabytes: run one session at a time.
"""

import nox

nox.options.default_venv_backend = "uv"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests with the newest version of each dependency."""
    session.install("--editable", ".[test]")
    run_tests(session)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest version of each dependency that pyproject.toml allows."""
    session.install("--resolution", "lowest-direct", "--editable", ".[test]")
    run_tests(session)


def run_tests(session: nox.Session) -> None:
    """Run pytest with the arguments after ``--``."""
    session.run("pytest", "--numprocesses", "auto", *session.posargs, env={"OMP_NUM_THREADS": "1"})
