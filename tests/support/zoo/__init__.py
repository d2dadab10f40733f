"""Small random models of every tower the package knows, one file a library. Each is built by a function."""
