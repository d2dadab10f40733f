"""File formats and safe writing: tensors without pickle, JPEG, atomic replacement."""
