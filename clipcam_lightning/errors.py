"""Everything this package raises on purpose.

    ClipCamError
      ModelError          no CLIP in the module, or several and none was chosen
        TowerError        a CLIP whose image tower is unknown, or whose output does not fit its grid
      ConfigError         an argument that cannot be used; the message lists what can
      ProbeError          an image, prompt, mask or manifest that cannot be used
      SnapshotError       a snapshot or probe file that cannot be read
        IncomparableError two snapshots that must not be compared
      DriftAlarm          an evaluation is an alarm and ``on_drift="raise"``

and the one category it warns with, ``ClipCamWarning``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipcam_lightning.drift.report import DriftReport

MAX_QUOTED = 200  # characters of user text quoted in a message
MAX_DESCRIBED = 400  # characters of the message of an error of another package


class ClipCamError(Exception):
    """Base class of all errors of this package.

    Example:
        >>> from clipcam_lightning import ClipCamError, ProbeSet
        >>> try:
        ...     ProbeSet("no/such/folder")
        ... except ClipCamError as error:
        ...     print(error)
        no/such/folder does not exist; give a folder with probes.csv or probes.jsonl, or a file of ProbeSet.save.
    """


class ModelError(ClipCamError, ValueError):
    """The module holds no CLIP, or several and none was chosen."""


class TowerError(ModelError):
    """The CLIP's image tower is unknown, or its output does not fit its grid."""


class ConfigError(ClipCamError, ValueError):
    """An argument has a value that cannot be used."""


class ProbeError(ClipCamError, ValueError):
    """A probe's image, prompt, mask or manifest row cannot be used."""


class SnapshotError(ClipCamError, ValueError):
    """A file is not a snapshot or probe set that this version can read."""


class IncomparableError(SnapshotError):
    """Two snapshots differ in something that makes their maps incomparable."""


class DriftAlarm(ClipCamError, RuntimeError):  # noqa: N818 - an alarm, as the docs call it
    """An evaluation is an alarm, and ``on_drift="raise"``.

    Attributes:
        report: the comparison that raised the alarm.
    """

    def __init__(self, message: str, report: "DriftReport") -> None:
        super().__init__(message, report)  # both are arguments, so that the error can be pickled
        self.report = report

    def __str__(self) -> str:
        return str(self.args[0])


class ClipCamWarning(UserWarning):
    """An evaluation is an alarm, or it failed and the training went on, or something of the run can be misread."""


def describe_error(error: BaseException) -> str:
    """Describe an error in one message.

    Args:
        error: any exception.

    Returns:
        The message, prefixed with the exception's type unless it is a :class:`ClipCamError` or an ``OSError``. What
        other packages say is put on one line and shortened.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, ClipCamError):
        return str(error)
    return f"{type(error).__name__}: {abridge(' '.join(str(error).split()), MAX_DESCRIBED)}"


def abridge(text: object, length: int = MAX_QUOTED) -> str:
    """Shorten a long text for a message.

    Args:
        text: anything; ``str`` is applied to it.
        length: in characters.

    Returns:
        The text, or both ends of a longer one.
    """
    text = str(text)
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 2 :]}"
