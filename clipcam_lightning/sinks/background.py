"""Write in a background thread, so that the training does not wait."""

import atexit
import threading
from typing import Any

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink

PATIENCE, PATIENCE_AT_THE_END = 60.0, 300.0  # seconds


class BackgroundSink(Sink):
    """Writes evaluations through another sink in a background thread, in their order and one at a time.

    :meth:`write` returns as soon as the previous evaluation is written, so that at most one is in flight. If that takes
    more than a minute, as with a server that does not respond, the new evaluation is not written there, so that the
    training goes on. An error of the thread is raised by the next :meth:`write`, which submits its own evaluation
    nevertheless, or by :meth:`close`.

    Args:
        sink: does the writing; it must not draw random numbers or touch the model.
        first_at_once: whether to write the first evaluation in the thread of the caller: drawing, encoding and clients
            import modules when they first run, and a module must not be imported while a dataloader forks its workers.
        patience: seconds that :meth:`write` waits for the previous evaluation.

    Example:
        >>> from clipcam_lightning import BackgroundSink, ClipCamCallback, Sink
        >>> class SlowSink(Sink):
        ...     def write(self, evaluation):
        ...         ...  # sends something to a server
        >>> callback = ClipCamCallback(sinks=[BackgroundSink(SlowSink())])
    """

    def __init__(self, sink: Sink, *, first_at_once: bool = False, patience: float = PATIENCE) -> None:
        self.sink = sink
        self.patience = patience
        self._in_flight: _Write | None = None
        self._is_next_at_once = first_at_once

    def __str__(self) -> str:
        return str(self.sink)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_in_flight": None}  # threads cannot be copied

    def write(self, evaluation: Evaluation) -> None:
        """Wait for the previous evaluation, then submit this one.

        Raises:
            TimeoutError: the previous evaluation is still being written; this one is not written.
            Exception: the previous evaluation could not be written.
        """
        if self._is_next_at_once:
            self._is_next_at_once = False
            self.sink.write(evaluation)
            return
        error = self.wait(self.patience)
        self._in_flight = _Write(self.sink, evaluation)
        self._in_flight.start()
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait until everything is written, at most five minutes, then close the sink.

        Raises:
            TimeoutError: the last evaluation is still being written.
            Exception: the last evaluation could not be written, or the sink could not be closed.
        """
        error = self.wait(max(self.patience, PATIENCE_AT_THE_END))
        self.sink.close()
        if error is not None:
            raise error

    def wait(self, patience: float) -> Exception | None:
        """Wait for the evaluation that is being written.

        Args:
            patience: seconds after which it is given up.

        Returns:
            The error of writing it.

        Raises:
            TimeoutError: it is still being written.
        """
        if self._in_flight is None:
            return None
        self._in_flight.join(patience)
        if self._in_flight.is_alive():
            raise TimeoutError(f"the previous evaluation is still being written after {patience:g} s")
        error, self._in_flight = self._in_flight.error, None
        return error


class _Write(threading.Thread):
    """One evaluation that is being written.

    The thread is a daemon: a client that never returns must not keep the interpreter from exiting.

    Attributes:
        error: what the sink raised.
    """

    running: "set[_Write]" = set()  # noqa: RUF012 - of all sinks

    def __init__(self, sink: Sink, evaluation: Evaluation) -> None:
        super().__init__(name="clipcam", daemon=True)
        self.error: Exception | None = None
        self._sink = sink
        self._evaluation = evaluation

    def run(self) -> None:
        self.running.add(self)
        try:
            self._sink.write(self._evaluation)
        except Exception as error:
            self.error = error
        except BaseException as error:  # a client that calls sys.exit must not end the training
            self.error = RuntimeError(f"{type(error).__name__}: {error}")
        finally:
            self.running.discard(self)


@atexit.register
def _finish_writing() -> None:
    """Wait a minute for what is being written by sinks that nobody closed."""
    for write in list(_Write.running):
        write.join(PATIENCE)
