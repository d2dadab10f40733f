"""Shared by the tests of bad input: hostile texts, a folder per example, and the number of examples."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import jaxtyping
from hypothesis import HealthCheck, reject, settings, strategies as st

from clipcam_lightning.errors import ClipCamError

Result = TypeVar("Result")
THOROUGHNESS = int(os.environ.get("THOROUGHNESS", "1"))  # 20 for a long search; 1 is the same examples every time
ANY_CHARACTER = st.characters(exclude_categories=())  # half surrogate pairs included
TEXTS = {
    "script": "<script>alert(1)</script>",
    "attribute": '"><img src=x onerror=alert(1)>',
    "template": "{{ 7 * 7 }} {% raw %} {} %s",
    "markdown": "**bold** [link](javascript:alert(1)) | a | b |",
    "console markup": "[red]a[/red] [/] [link=file:///etc]b[/link] :smile:",
    "tag": "clipcam/drift/../../x",
    "overrides": "\u202e\u2066abc\u202d",
    "terminal": "\x1b[2J\x1b]0;title\a\b\x7f",
    "NUL": "a\0b",
    "lines": "one\ntwo\r\nthree\u2028four\u0085five",
    "half a pair": "a \ud83d cat \udc08",
    "emoji": "a 🐈‍⬛ on a 🛋️",
    "combining": "e\u0301\u0327" * 20,
    "long": "a photograph of a very long prompt " * 286,
    "one word": "x" * 10_000,
    "zero width": "\u200b",
    "blank": " \t\n",
    "empty": "",
}
texts = st.one_of(
    st.sampled_from(list(TEXTS.values())),
    st.text(ANY_CHARACTER, max_size=12),
    st.text("ab .-_/\\[]<>&|,\"'\n", max_size=120),
)


def examples(count: int) -> settings:
    """Settings of a property that is tested on ``count`` examples."""
    return settings(
        max_examples=count * THOROUGHNESS,
        derandomize=THOROUGHNESS == 1,
        deadline=None,
        database=None,
        # The fixtures of these tests hold nothing that an example could leave behind.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@contextmanager
def example_folder() -> Iterator[Path]:
    """Create a folder that only one example uses."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def without_test_checks() -> Iterator[None]:
    """Run as users do: without run-time shape checks, and with warnings that are no errors."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def make_or_reject(make: Callable[[], Result]) -> Result:
    """Return what torch makes; reject the example where torch has no such tensor and raises one of these errors."""
    try:
        return make()
    except (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError):  # by torch, not by the package
        reject()


def attempt(read: Callable[[], Result]) -> Result | None:
    """Return what ``read`` returns, or ``None`` if it raises a ``ClipCamError``; any other error fails the test."""
    with without_test_checks():
        try:
            return read()
        except ClipCamError as error:
            message = str(error)
    assert 0 < len(message.strip()) < 2000, "a message is for people"
    return None
