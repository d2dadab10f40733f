"""Write in a background thread, so that the training does not wait."""

from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError as FutureTimeout
from typing import Any

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink

PATIENCE, PATIENCE_AT_THE_END = 60.0, 600.0  # seconds


class BackgroundSink(Sink):
    """Writes evaluations through another sink in a thread of its own, in their order and one at a time.

    :meth:`write` returns as soon as the previous evaluation is written, so that at most one is in flight. If that takes
    more than a minute, as with a server that does not respond, the new evaluation is not written there, so that the
    training goes on. An error of the thread is raised by the next :meth:`write`, which submits its own evaluation
    nevertheless, or by :meth:`close`.

    Args:
        sink: does the writing; it must not draw random numbers or touch the model.
        first_at_once: whether to write the first evaluation in the thread of the caller: drawing and encoding import
            modules when they first run, and a module must not be imported while a dataloader forks its workers.
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
        self._thread: ThreadPoolExecutor | None = None
        self._in_flight: Future[None] | None = None
        self._is_next_at_once = first_at_once

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_thread": None, "_in_flight": None}  # threads cannot be copied

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
        error = self._wait(self.patience)
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="clipcam")
        self._in_flight = self._thread.submit(self.sink.write, evaluation)
        if error is not None:
            raise _as_exception(error)

    def close(self) -> None:
        """Wait until everything is written, at most ten minutes, then close the sink.

        Raises:
            TimeoutError: the last evaluation is still being written.
            Exception: the last evaluation could not be written, or the sink could not be closed.
        """
        error = self._wait(max(self.patience, PATIENCE_AT_THE_END))
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        self.sink.close()
        if error is not None:
            raise _as_exception(error)

    def _wait(self, patience: float) -> BaseException | None:
        """Wait for the evaluation in flight.

        Returns:
            The error of writing it.
        """
        if self._in_flight is None:
            return None
        try:
            error = self._in_flight.exception(patience)
        except FutureTimeout as timeout:
            raise TimeoutError(f"the previous evaluation is still being written after {patience:g} s") from timeout
        self._in_flight = None
        return error


def _as_exception(error: BaseException) -> Exception:
    """Keep a client that calls ``sys.exit`` in its thread from ending the training."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
