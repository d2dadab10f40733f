"""Where a look goes; one file per destination."""
