"""Writing that the training need not wait for."""

from concurrent.futures import Future, ThreadPoolExecutor

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink


class BackgroundSink(Sink):
    """Hands looks to another sink in a thread of its own, in their order and one at a time.

    A :meth:`write` returns when the look before is written, so at most one is under way and none is left out. What goes
    wrong in the thread is raised by the next :meth:`write`, which hands its own look on all the same, or by
    :meth:`close`.

    The first look is written at once: it imports whatever is imported late, as drawing and encoding do, which must not
    happen while a dataloader forks its workers.

    Args:
        sink: what does the writing; it must not draw random numbers nor touch the model.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clipcam")
        self._in_flight: Future[None] | None = None
        self._is_first = True

    def write(self, evaluation: Evaluation) -> None:
        """Hand the look on and wait for the one before."""
        if self._is_first:
            self._is_first = False
            self.sink.write(evaluation)
            return
        before, self._in_flight = self._in_flight, self._thread.submit(self.sink.write, evaluation)
        if before is not None:
            before.result()

    def close(self) -> None:
        """Wait until everything is written."""
        self._thread.shutdown()
        last, self._in_flight = self._in_flight, None
        if last is not None:
            last.result()
        self.sink.close()
