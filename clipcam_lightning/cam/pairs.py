"""Read a module that embeds by two functions or methods: its tower, tokenizer and preprocessing."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from clipcam_lightning.cam.adapters import Tokenizer, find_adapter
from clipcam_lightning.cam.encoders import EncodeImage, EncoderPair, EncodeText
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.model_state import evaluation_mode
from clipcam_lightning.cam.nearby import CLIP_VOCABULARY, find_image_processor, find_tokenizer, makes_ids
from clipcam_lightning.cam.preprocessing import Preprocessing
from clipcam_lightning.cam.towers import TOWERS, find_tower
from clipcam_lightning.cam.towers.tower import AttentionTower, Tower
from clipcam_lightning.cam.tracing import Trace, trace_encoder
from clipcam_lightning.cam.verification import verify_head


def read_pair(
    root: nn.Module,
    path: str,
    encode_image: EncodeImage,
    encode_text: EncodeText,
    tokenizer: Tokenizer | None,
    towers: Sequence[type[Tower]],
) -> ClipModel:
    """Read a module that embeds by two functions.

    Args:
        root: the module that was searched.
        path: dotted name of the module below it.
        encode_image, encode_text: functions of the module, or names of its methods.
        tokenizer: of the user; by default the nearest, if the text function takes what it returns.
        towers: image towers of the user.

    Raises:
        TowerError: the image tower is unknown and cannot be traced.
        ConfigError: a function does not return embeddings.
    """
    owner = dict(root.named_modules(remove_duplicate=False))[path]
    pair = _with_known_tower(EncoderPair(owner, encode_image, encode_text), towers)
    tower = find_tower(pair, towers)
    tower.verify = verify_head  # whatever else the functions do with its output
    found = ClipModel(
        module=pair,
        tower=tower,
        tokenizer=tokenizer,
        preprocessing=Preprocessing.of(pair, tower.input_size, find_image_processor(root, path)),
        name=path,
    )
    return found if tokenizer else replace(found, tokenizer=find_tokenizer(root, path, partial(takes_ids, found)))


def measure_widths(found: ClipModel) -> tuple[int, int]:
    """Embed an image and a text, and return the lengths of the embeddings.

    Raises:
        Exception: of one of the encoders.
    """
    with evaluation_mode(found.module), torch.no_grad():
        images = torch.zeros(1, 3, *found.tower.input_size, dtype=torch.float32, device="cpu")
        texts = found.embed_texts(["a photo"]) if found.tokenizer else found.embed_tokens(make_tokens(found.module))
        return found.features(images).shape[-1], texts.shape[-1]


def make_tokens(clip: nn.Module) -> dict[str, torch.Tensor]:
    """Make the tokens of a text that may mean nothing, on the device of the weights."""
    adapter, parameter = find_adapter(clip), next(clip.parameters(), None)
    length = adapter.context_length if adapter and adapter.pads_to_context_length else None
    ids = torch.ones(1, length or 8, dtype=torch.long, device="cpu" if parameter is None else parameter.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def takes_ids(found: ClipModel, tokenizer: Tokenizer) -> bool:
    """Whether the text encoder takes what a tokenizer returns, and not strings or ids of another vocabulary."""
    sizes: set[int] = set()  # of the vocabularies in which ids were looked up
    with ExitStack() as stack:
        for layer in found.module.modules():
            if isinstance(layer, nn.Embedding):
                handle = layer.register_forward_hook(lambda layer, *_: sizes.add(layer.num_embeddings))
                stack.callback(handle.remove)
        try:
            with evaluation_mode(found.module), torch.no_grad():
                replace(found, tokenizer=tokenizer).embed_texts(["a photo"])
        except Exception:  # of any kind: it may tokenize by itself
            return False
    return CLIP_VOCABULARY not in sizes or makes_ids(found.adapter, CLIP_VOCABULARY, tokenizer)


def _with_known_tower(pair: EncoderPair, towers: Sequence[type[Tower]]) -> EncoderPair:
    """Mark as ``visual`` the smallest part that runs when an image is encoded and that a tower fits, if any."""
    if any(tower.fits(pair) for tower in towers):
        return pair
    trace = trace_encoder(pair, pair.encode_image)
    read = [name for name, gradient in trace.read.items() if gradient is not None]
    inside = {f"{name}.".startswith for name in read}
    parts = [
        pair.get_submodule(name)
        for name in sorted(trace.ran)
        if name and (any(starts(f"{name}.") for starts in inside) or not read)
    ]
    for part in sorted(parts, key=lambda part: sum(1 for _ in part.modules())):
        marked = pair.with_visual(part)
        kind = next((tower for tower in (*towers, *TOWERS) if tower.fits(marked)), None)
        if kind is not None:
            return marked if _reads_patches_as_known(kind(marked), pair, trace) else pair
    return pair


def _reads_patches_as_known(tower: Tower, pair: EncoderPair, trace: Trace) -> bool:
    """Whether the functions read of the last block what the tower knows: the class token, or patches."""
    if not isinstance(tower, AttentionTower) or not tower.attentions:
        return True
    names = {module: name for name, module in pair.named_modules()}
    read = trace.read.get(names.get(tower.blocks[-1], ""))
    if read is None or read.ndim != 3:
        return True
    patches = read.transpose(0, tower.batch_dim)[:, tower.prefix :]
    return bool(patches.any()) == (tower.pooling != "cls")
