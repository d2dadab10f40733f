"""Pictures as JPEG files."""

import io

from PIL import Image


def as_jpeg(image: Image.Image, quality: int) -> bytes:
    """The file, as bytes; ``quality`` 1 to 95."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, progressive=True)  # smaller by a tenth
    return file.getvalue()
