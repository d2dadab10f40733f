"""Encode images as JPEG."""

import io

from PIL import Image


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Encode an image as a progressive JPEG file.

    Args:
        image: in a mode that JPEG can hold, such as RGB or L.
        quality: 1 (small) to 95 (good).

    Returns:
        All bytes of the file.
    """
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, progressive=True)  # progressive files are about 10 % smaller
    return file.getvalue()
