"""How files are encoded and written: tensors without pickle, JPEG, never half a file."""
