"""CAM methods, one paper per file. Each is one function from a :class:`Capture` to a raw map."""

from clipcam_lightning.cam.methods.gradcam import gradcam
from clipcam_lightning.cam.methods.hirescam import hirescam
from clipcam_lightning.cam.methods.layercam import layercam
from clipcam_lightning.cam.methods.method import Method
from clipcam_lightning.errors import ConfigError

__all__ = ["METHODS", "Method", "method_of"]

METHODS: dict[str, Method] = {"gradcam": gradcam, "hirescam": hirescam, "layercam": layercam}


def method_of(method: str | Method) -> Method:
    """The method of that name; one that is no name is used as it is.

    Raises:
        ConfigError: no method has that name; the message lists those there are.
    """
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)} or a function (got {method!r}).")
    return METHODS[method]
