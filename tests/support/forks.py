"""A pytest plugin that runs each test with the marker ``forks`` in a process of its own.

Such a test forks, as data loader workers do. Threads do not survive a fork, and other tests leave some behind: a worker
that is forked beside those of TensorBoard's fast loader may crash or wait forever.
"""

import subprocess
import sys

import pytest

PATIENCE = 600  # seconds, on a busy machine


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a marked test by a pytest without this plugin, and fail with its output."""
    if pyfuncitem.get_closest_marker("forks") is None:
        return None
    command = [sys.executable, "-m", "pytest", "-p", f"no:{__name__}", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    process = subprocess.run(
        command, cwd=pyfuncitem.config.rootpath, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if process.returncode:
        pytest.fail(f"{process.stdout}\n{process.stderr}", pytrace=False)
    return True
