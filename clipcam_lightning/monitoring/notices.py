"""What a user is warned of during a training: each kind of notice once, and an alarm when it is a new one."""

from collections.abc import Callable
from typing import NamedTuple

from clipcam_lightning.drift.report import DriftReport

UNTRAINED = "untrained"  # kind: what is monitored may not be what is trained


class Notice(NamedTuple):
    """A message to the user.

    Attributes:
        kind: of what it is about; the user sees the first notice of each kind.
        text: one or more sentences, which may hold a step or a path.
    """

    kind: str
    text: str


class Notices:
    """Shows notices as warnings.

    Args:
        owner: name of the class that warns.
        warn: shows a warning.
    """

    def __init__(self, owner: str, warn: Callable[[str], None]) -> None:
        self._owner = owner
        self._warn = warn
        self._kinds: set[str] = set()
        self._subject: tuple[str, str, bool] | None = None  # of the last report

    def show(self, notice: Notice, consequence: str = "") -> None:
        """Warn, unless there was a notice of this kind.

        Args:
            notice: what to say.
            consequence: what follows from it, as a sentence.
        """
        if notice.kind not in self._kinds:
            self._kinds.add(notice.kind)
            self._warn(" ".join(filter(None, (f"{self._owner}: {end_sentence(notice.text)}", consequence))))

    def is_news(self, report: DriftReport) -> bool:
        """Whether a report is an alarm about something else than the one before: a shortcut stays for many epochs."""
        last, self._subject = self._subject, report.subject
        return report.alarm and self._subject != last

    def forget(self) -> None:
        """Show everything again, in another training."""
        self._kinds.clear()
        self._subject = None


def end_sentence(text: str) -> str:
    """Add a full stop, unless the text ends with one.

    Example:
        >>> end_sentence("the training goes on"), end_sentence("Use clip=...")
        ('the training goes on.', 'Use clip=...')
    """
    return text if text.endswith(".") else f"{text}."
