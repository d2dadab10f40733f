"""The format of the CLIP CAM tab's data in an event file: tags, columns of the metrics, and the encoding of values.

An evaluation is one event. The tags of its values begin with ``<root>/tab/`` and stand in this order:

    probes         JSON: names, prompts and digests in the order of the metrics, and the share of each image that the
                   model sees (``visible``), below 1 where it is cropped; once
    image/<probe>  JPEG of the model's input; once
    mask/<probe>   PNG of one bit per pixel, white where the object is; once, if the probe has a mask
    baseline       float32 [n, h, w]: raw maps of the baseline, at its first use, unless it is the previous evaluation
    map/<probe>    float16 [h, w]: the raw map divided by the probe's ``scale``, a column of the metrics
    metrics        float32 [n, c]: one row per probe, one column for each of ``COLUMNS``
    ground/<probe> JPEG of equal tiles side by side: the probe's image without its object, then with the object of other
                   probes; once, when an alarm first rests on it
    alarm          float32 scalar: 1 if the evaluation is an alarm, else 0
    evaluation     JSON: epoch, step of the baseline, whether that is the newest ``baseline`` or the evaluation at that
                   step, whether the evaluation is an alarm and why, how the maps were made, and by probe the names of
                   the states of degenerate maps (``states``, ``baseline_states``) with what they say (``state_words``).
                   For each of the ``grounds`` that an alarm rests on: the probe, and what its tiles with other objects
                   are ``called`` now and at the first baseline (``called_before``, -1 if untried), as numbers of probes
                   with these prompts

The metadata of each value names the plugin; its content is the format version.
"""

import json
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float16, Float32
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_HALF, DT_STRING

PLUGIN = "clipcam"
VERSION = 1
METADATA = str(VERSION).encode()
TAB = "/tab/"
EVALUATION, METRICS, PROBES, BASELINE, ALARM = "evaluation", "metrics", "probes", "baseline", "alarm"
MAP, IMAGE, MASK, GROUND = "map/", "image/", "mask/", "ground/"
COLUMNS = (
    "drift",  # NaN without a valid baseline
    "similarity",
    "flagged",  # 1 or 0
    "noise_ratio",
    "shared_gain",
    "concentration",
    "top_iou",
    "center_shift",
    "energy_inside_mask",
    "background_score",
    "covered_loss",  # NaN where no place was covered
    "control_loss",
    "note",  # index into the evaluation's notes: why the probe is flagged or its drift unknown; -1 for none
    "scale",  # of the map in the event file
)
_TYPES = {np.dtype(np.float32): DT_FLOAT, np.dtype(np.float16): DT_HALF}


def tag(root: str, kind: str, probe: str = "") -> str:
    """Return the tag of a value; ``probe`` is for the kinds that have one value per probe."""
    return f"{root}{TAB}{kind}{probe}"


def scale_maps(maps: Float[np.ndarray, "n h w"]) -> tuple[Float16[np.ndarray, "n h w"], Float32[np.ndarray, "n"]]:
    """Scale each map to half floats between -1 and 1.

    A raw map may be smaller than the smallest half float. The scales are powers of two, so that dividing by them is
    exact.

    Args:
        maps: raw maps.

    Returns:
        The maps divided by their scales, and the scales.
    """
    largest = np.abs(np.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0)).max((1, 2))
    _, exponent = np.frexp(largest)  # largest < 2 ** exponent
    scale = np.ldexp(np.float32(1), exponent.clip(-126, 127)).astype(np.float32)
    return (maps / scale[:, None, None]).astype(np.float16), scale


def array_value(name: str, array: Float[np.ndarray, "..."]) -> Summary.Value:
    """Encode a float16 or float32 array under the tag ``name``."""
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in array.shape])
    return _value(name, TensorProto(dtype=_TYPES[array.dtype], tensor_shape=shape, tensor_content=array.tobytes()))


def json_value(name: str, content: Mapping[str, object]) -> Summary.Value:
    """Encode an object as JSON under the tag ``name``, in ASCII because a prompt may hold a lone surrogate."""
    encoded = json.dumps({"version": VERSION, **content}).encode("ascii")
    return _value(name, TensorProto(dtype=DT_STRING, string_val=[encoded]))


def scalar_value(name: str, value: float) -> Summary.Value:
    """Encode a number under the tag ``name``, of which TensorBoard can read the last one alone."""
    return _value(name, TensorProto(dtype=DT_FLOAT, float_val=[value]), DATA_CLASS_SCALAR)


def image_value(name: str, file: bytes) -> Summary.Value:
    """Encode a JPEG or PNG file under the tag ``name``.

    It is a tensor and not a blob, because TensorBoard's fast loader returns blobs one by one, in 40 ms each.
    """
    return _value(name, TensorProto(dtype=DT_STRING, string_val=[file]))


def _value(name: str, tensor: TensorProto, data_class: int = DATA_CLASS_TENSOR) -> Summary.Value:
    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN, content=METADATA)
    # TensorBoard hides values without a data class.
    return Summary.Value(tag=name, metadata=SummaryMetadata(plugin_data=plugin, data_class=data_class), tensor=tensor)
