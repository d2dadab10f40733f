"""Small random models of every supported tower, one file per library. Each model is built by a function."""
