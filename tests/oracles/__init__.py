"""Independent, slower derivations of the results; nothing here imports the package."""
