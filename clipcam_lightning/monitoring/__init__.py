"""One evaluation of a probe set: explain, snapshot, compare, and hand the result to the sinks."""
