"""Independent, slower re-derivations that results are held against; nothing here uses the package."""
