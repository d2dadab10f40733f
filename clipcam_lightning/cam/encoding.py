"""Write images to files."""

import io
import os

from PIL import Image

from clipcam_lightning.cam.urls import PathLike, is_url, open_url, require_whole_url
from clipcam_lightning.cam.writing import write_atomically
from clipcam_lightning.errors import ConfigError, abridge


def write_image(image: Image.Image, file: PathLike) -> None:
    """Write an image to a file, which is never half written. Missing folders are created.

    Args:
        image: in any mode that the format can hold.
        file: a path or URL; its suffix, such as ``.png``, ``.jpg`` or ``.pdf``, names the format.

    Raises:
        ConfigError: the suffix names no format that can be written, or the URL cannot be opened.
        OSError: the file cannot be written.
    """
    suffix = os.path.splitext(str(file))[1].lower()  # noqa: PTH122 - the core has no pathlib
    kind = Image.registered_extensions().get(suffix)
    if kind not in Image.SAVE:
        raise ConfigError(f"{abridge(file)} names no image format; let it end in .png, .jpg, .webp or .pdf.")
    content = io.BytesIO()
    image.save(content, kind)
    if is_url(file):
        write_atomically(open_url(str(file)), content.getvalue())
        return
    require_whole_url(str(file))
    write_atomically(str(file), content.getvalue())
