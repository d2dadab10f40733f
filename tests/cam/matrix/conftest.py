"""The shared checks are no test module; without this their assertions would fail without the values."""

import pytest

pytest.register_assert_rewrite("tests.cam.matrix.checks")
