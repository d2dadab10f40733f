"""Write in a background thread, so that the training does not wait."""

from concurrent.futures import Future, ThreadPoolExecutor

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink


class BackgroundSink(Sink):
    """Writes evaluations through another sink in a thread of its own, in their order and one at a time.

    :meth:`write` returns as soon as the previous evaluation is written, so that at most one is in flight and none is
    skipped. An error of the thread is raised by the next :meth:`write`, which submits its own evaluation nevertheless,
    or by :meth:`close`.

    The first evaluation is written at once: drawing and encoding import modules when they first run, and a module must
    not be imported while a dataloader forks its workers.

    Args:
        sink: does the writing; it must not draw random numbers or touch the model.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clipcam")
        self._in_flight: Future[None] | None = None
        self._is_first = True

    def write(self, evaluation: Evaluation) -> None:
        """Submit the evaluation, then wait for the previous one.

        Raises:
            Exception: the previous evaluation could not be written.
        """
        if self._is_first:
            self._is_first = False
            self.sink.write(evaluation)
            return
        previous, self._in_flight = self._in_flight, self._thread.submit(self.sink.write, evaluation)
        if previous is not None:
            previous.result()

    def close(self) -> None:
        """Wait until everything is written, then close the sink.

        Raises:
            Exception: the last evaluation could not be written, or the sink could not be closed.
        """
        self._thread.shutdown()
        last, self._in_flight = self._in_flight, None
        try:
            if last is not None:
                last.result()
        finally:
            self.sink.close()
