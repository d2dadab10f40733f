"""A small world whose images come with exact masks, and the small CLIPs trained on it.

No weights and no data need to be downloaded, and every map can be graded. Demo, examples,
tests and benchmarks share it.
"""
