"""Messages describe any error and quote long texts in part."""

from pathlib import Path

import pytest

from clipcam_lightning import errors
from clipcam_lightning.errors import MAX_QUOTED, ClipCamError, ProbeError, abridge, describe_error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ProbeError("the prompt is empty"), "the prompt is empty"),
        (KeyError("maps"), "KeyError: 'maps'"),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "No such file or directory: a.png"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("without a number"), "OSError: without a number"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_only_errors_of_other_libraries_are_prefixed_with_their_type(error: Exception, text: str) -> None:
    assert describe_error(error) == text


def test_every_error_class_is_in_the_documented_tree() -> None:
    names = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Warning)]
    names += [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(names) > 8
    assert all(name in (errors.__doc__ or "") for name in names)
    assert all(issubclass(getattr(errors, name), ClipCamError | UserWarning) for name in names)


def test_a_short_text_is_quoted_in_full() -> None:
    assert abridge("x" * MAX_QUOTED) == "x" * MAX_QUOTED
    assert abridge(Path("a.png")) == "a.png"


def test_both_ends_of_a_long_text_are_quoted() -> None:
    text = abridge("a" * 5000 + "z" * 5000)
    assert text.startswith("aaa")
    assert text.endswith("zzz")
    assert len(text) < MAX_QUOTED + 10
