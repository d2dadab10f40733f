"""What stands in an event file for the CLIP CAM tab of TensorBoard: its tags, its figures, and how each is encoded.

A look is one event, whose values have tags that begin with ``<root>/tab/``, in this order:

    probes           JSON: names, prompts and digests in the order of the figures; once
    picture/<probe>  a JPEG of what the model saw; once
    baseline         float32 [n, h, w]: raw maps of the baseline, when it is first used and is not the look before
    map/<probe>      float16 [h, w]: the raw map divided by the probe's figure ``scale``
    figures          float32 [n, f]: one row a probe, one column each of ``FIGURES``
    look             JSON: epoch, step of the baseline, whether that is the newest ``baseline`` or the look at that
                     step, whether the look is an alarm, how the maps were made

Each value's metadata names the plugin, and as its content the version of all this.
"""

import json
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float16, Float32
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_HALF, DT_STRING

PLUGIN = "clipcam"
VERSION = 1
METADATA = str(VERSION).encode()
TAB = "/tab/"
EVALUATION, FIGURES_TAG, PROBES, BASELINE, MAP, PICTURE = (
    "evaluation",
    "figures",
    "probes",
    "baseline",
    "map/",
    "picture/",
)
FIGURES = (
    "drift",  # NaN where the baseline says nothing
    "similarity",
    "flagged",  # 1 if the probe breaks the rule, else 0
    "noise_ratio",
    "shared_gain",
    "concentration",
    "top_iou",
    "center_shift",
    "energy_inside_mask",
    "note",  # which of the look's notes is the probe's: why it breaks the rule or cannot be judged; -1 for none
    "scale",  # of its map in the event file
)
_TYPES = {np.dtype(np.float32): DT_FLOAT, np.dtype(np.float16): DT_HALF}


def tag(root: str, kind: str, probe: str = "") -> str:
    """The tag of one value; ``probe`` for those that each probe has."""
    return f"{root}{TAB}{kind}{probe}"


def scaled(maps: Float[np.ndarray, "n h w"]) -> tuple[Float16[np.ndarray, "n h w"], Float32[np.ndarray, "n"]]:
    """Maps as half floats between -1 and 1, and the power of two that each was divided by.

    A raw map may be smaller than the smallest half float; to divide by a power of two loses nothing.
    """
    largest = np.abs(np.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0)).max((1, 2))
    _, exponent = np.frexp(largest)  # largest < 2 ** exponent
    scale = np.ldexp(np.float32(1), exponent.clip(-126, 127)).astype(np.float32)
    return (maps / scale[:, None, None]).astype(np.float16), scale


def array_value(name: str, array: Float[np.ndarray, "..."]) -> Summary.Value:
    """A float16 or float32 array under a tag."""
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in array.shape])
    return _value(name, TensorProto(dtype=_TYPES[array.dtype], tensor_shape=shape, tensor_content=array.tobytes()))


def json_value(name: str, content: Mapping[str, object]) -> Summary.Value:
    """What JSON knows, in ASCII: a prompt may hold half a surrogate pair."""
    encoded = json.dumps({"version": VERSION, **content}).encode("ascii")
    return _value(name, TensorProto(dtype=DT_STRING, string_val=[encoded]))


def image_value(name: str, jpeg: bytes) -> Summary.Value:
    """A picture under a tag. Not as a blob: those TensorBoard's fast loader hands out one by one, in 40 ms each."""
    return _value(name, TensorProto(dtype=DT_STRING, string_val=[jpeg]))


def _value(name: str, tensor: TensorProto) -> Summary.Value:
    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN, content=METADATA)
    # A value that names no data class is hidden by TensorBoard.
    return Summary.Value(
        tag=name, metadata=SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR), tensor=tensor
    )
