"""``explain`` works in every context, restores the model and checks its arguments."""

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.explanation import Explanation
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.images import resize_images
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.model_state import evaluation_mode
from clipcam_lightning.cam.targets import Contrast
from clipcam_lightning.cam.views import shift_images
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip

PROMPTS = ["a red circle", "a blue star"]


def fail(*_args: object) -> Tensor:
    raise RuntimeError("on purpose")


class Restless(nn.Module):
    """Draws random numbers and changes a buffer in every call, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        random.random()
        np.random.rand()
        return x + 0 * torch.rand(1)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64)


def record_state(model: nn.Module) -> dict[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "grads": [p.grad for p in model.parameters()],
        "values": [value.tolist() for value in (*model.parameters(), *model.buffers())],
        "random state": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("break_at", ["nothing", "forward", "method"])
@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_explain_restores_the_model(break_at: str, tower: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_clip(tower).train()
    images, texts = torch.randn(2, 3, *model.visual.preprocess_cfg["size"]), torch.randn(2, 64)
    visual, restless = model.visual, Restless()
    if tower == "vit":
        visual.patch_dropout, last = restless, visual.ln_post
    else:
        visual.layer3.add_module("restless", restless)
        last = visual.attnpool
    last.eval()  # one submodule deliberately out of step
    visual.requires_grad_(False)
    model.logit_scale.grad = torch.ones(())
    before = record_state(model)

    with monkeypatch.context() as patch:
        if break_at == "forward":
            patch.setitem(vars(last), "forward", fail)
        method = fail if break_at == "method" else "gradcam"
        with nullcontext() if break_at == "nothing" else pytest.raises(RuntimeError, match="on purpose"):
            explain(model, images, texts, method=method, layers=0, scales=(1.0, 2.0), checkpointing=True)

    after = record_state(model)
    for part, value in before.items():
        assert after[part] == value, part


def test_evaluation_mode_restores_random_states_and_buffers() -> None:
    """Not tested with ``explain``, because the run-time type checks of this test suite draw from ``random``."""
    model = Restless()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    with evaluation_mode(model):
        model(torch.ones(1))

    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert model.calls == 0


class Observer(nn.Module):
    """Keeps statistics in buffers of every kind: the first gets another shape, as in an observer of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("minimum", torch.tensor([]))
        self.register_buffer("table", torch.arange(6.0).view(2, 3).T)
        self.register_buffer("gate", torch.ones(1, requires_grad=True))
        self.register_buffer("unknown", torch.tensor([torch.nan, 1.0]))
        self.register_buffer("without_values", torch.empty(3, device="meta"), persistent=False)
        self.register_buffer("neighbours", torch.eye(2).to_sparse())
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.minimum.resize_(3).fill_(1)
        self.table.resize_(4, 5).fill_(1)
        self.gate.data.zero_()
        self.unknown[1] = 2
        self.without_values = torch.ones(3)
        self.neighbours.mul_(2)
        self.calls += 1
        return x


def test_evaluation_mode_restores_buffers_of_every_kind() -> None:
    model, untouched = Observer(), Observer()
    buffers, stride = dict(model.named_buffers()), model.table.stride()

    with evaluation_mode(model):
        model(torch.ones(1))

    for name, buffer in model.named_buffers():
        assert buffer is buffers[name], name
        if not buffer.is_meta:
            assert_close(buffer, untouched.get_buffer(name), atol=0, rtol=0, equal_nan=True)
    assert model.table.stride() == stride


class Counting(nn.Module):
    """Keeps what it sees in attributes of every kind, and adds one in its first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.scale: float | None = None
        self.features = torch.zeros(2)
        self.seen: list[Tensor] = []
        self.by_size: dict[int, Tensor] = {1: self.features}
        self.last: deque[Tensor] = deque([self.features], maxlen=1)
        self.sizes = {3}
        self.by_name: defaultdict[str, list[int]] = defaultdict(list, old=[1])
        self.counts = Counter(old=2)
        self.ordered = OrderedDict(b=[[1]], a=[[2]])
        self.average = torch.tensor([1.0, torch.nan])
        self.averages = {"text": (torch.zeros(2),)}
        self.of_all_processes = torch.zeros(2).share_memory_()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.scale = 2.0
        self.features = x
        self.seen.append(x)
        self.by_size[1] = x
        self.last.append(x)
        self.sizes.add(len(x))
        self.by_name["old"].append(2)
        self.by_name["new"].append(2)
        self.counts.update(["old", "new"])
        self.ordered["b"][0].append(3)
        self.ordered.move_to_end("b")
        self.average.mul_(0.5)
        self.averages["text"][0].add_(1)
        self.of_all_processes.add_(1)
        self.was_called = True
        return x


def test_evaluation_mode_restores_attributes_of_every_kind() -> None:
    model = Counting()
    first, containers = model.features, (model.seen, model.by_size, model.last, model.sizes)

    with evaluation_mode(nn.Sequential(model)):
        model(torch.ones(1))

    assert (model.calls, model.scale, model.features is first) == (0, None, True)
    assert (model.seen, model.by_size, list(model.last), model.sizes) == ([], {1: first}, [first], {3})
    assert all(a is b for a, b in zip(containers, (model.seen, model.by_size, model.last, model.sizes), strict=True))
    assert (model.by_name, model.counts) == ({"old": [1]}, {"old": 2})
    assert list(model.ordered.items()) == [("b", [[1]]), ("a", [[2]])]
    assert_close(model.average, torch.tensor([1.0, torch.nan]), equal_nan=True)
    assert_close(model.averages["text"][0], torch.zeros(2))
    assert_close(model.of_all_processes, torch.ones(2), msg="another process may have changed it")
    assert not hasattr(model, "was_called")


class Preparing(nn.Module):
    """Prepares itself in its first forward, and notes that it has."""

    def __init__(self, prepare: Callable[[nn.Module], None]) -> None:
        super().__init__()
        self.prepare, self.is_prepared = prepare, False

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_prepared:
            self.prepare(self)
            self.is_prepared = True
        return x


PREPARATIONS: dict[str, Callable[[Any], Any]] = {
    "buffer": lambda module: module.register_buffer("mean", torch.zeros(1)),
    "parameter": lambda module: module.register_parameter("scale", nn.Parameter(torch.ones(1))),
    "layer": lambda module: module.add_module("layer", nn.Linear(1, 1)),
    "hook": lambda module: module.register_forward_hook(lambda *_: None),
    "object": lambda module: setattr(module, "table", np.zeros(1)),
}


@pytest.mark.parametrize("prepare", PREPARATIONS.values(), ids=PREPARATIONS)
def test_a_module_that_prepares_itself_stays_prepared(prepare: Callable[[Any], Any]) -> None:
    model = Preparing(prepare)
    with evaluation_mode(model):
        model(torch.ones(1))
    assert model.is_prepared, "or it would prepare itself again, with a second hook or another layer"


def test_a_hook_on_another_module_leaves_both_prepared() -> None:
    other = nn.Identity()
    model = Preparing(lambda _module: other.register_forward_hook(lambda *_: None))
    with evaluation_mode(nn.Sequential(model, other)):
        model(torch.ones(1))
    assert model.is_prepared
    assert len(other._forward_hooks) == 1


def test_a_layer_that_takes_the_place_of_none_stays() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = None

        def forward(self, x: Tensor) -> Tensor:
            self.layer = self.layer or nn.Linear(1, 1)
            return self.layer(x)

    model = Late()
    with evaluation_mode(model):
        model(torch.ones(1, 1))
    assert isinstance(model.layer, nn.Linear)


def test_a_cached_property_stays() -> None:
    class Bank(nn.Module):
        @cached_property
        def rows(self) -> Tensor:
            return torch.ones(2)

    model = Bank()
    with evaluation_mode(model):
        rows = model.rows
    assert vars(model)["rows"] is rows


def test_a_buffer_that_cannot_be_restored_leaves_the_others_restored() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("before", torch.zeros(1))
            self.register_buffer("shared", torch.zeros(1).expand(3))  # torch writes to no such tensor
            self.register_buffer("after", torch.zeros(1))

    model = Shared()

    def fill_buffers() -> None:
        with evaluation_mode(model):
            for buffer in model.buffers():
                buffer[:1].fill_(1)

    with pytest.raises(RuntimeError, match="single memory location"):
        fill_buffers()

    assert (model.before, model.after) == (0, 0)


@pytest.mark.parametrize("made_in", [nullcontext, torch.inference_mode])
def test_evaluation_mode_does_not_write_to_a_buffer_that_holds_nan(made_in: Callable[[], Any]) -> None:
    model = nn.Module()
    with made_in():
        model.register_buffer("unknown", torch.tensor([torch.nan, 1.0]))
    buffer = model.unknown
    version = None if buffer.is_inference() else buffer._version

    with evaluation_mode(model):
        pass

    assert model.unknown is buffer
    assert version is None or buffer._version == version


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "plain": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_maps_do_not_depend_on_the_surrounding_context(context: Any, clip: ClipModel, images: Tensor) -> None:
    expected = explain(clip, images, PROMPTS)

    with context():
        explanation = explain(clip, images.clone(), PROMPTS)  # under inference_mode an inference tensor

    assert torch.equal(explanation.maps, expected.maps)
    assert torch.equal(explanation.similarity, expected.similarity)
    assert explanation.maps.dtype == torch.float32


def test_train_mode_with_dropout_and_batchnorm_gives_the_eval_maps(images: Tensor) -> None:
    model = build_clip("vit")
    model.visual.ln_pre = nn.Sequential(nn.Dropout(0.5), nn.LayerNorm(128))
    expected = explain(model.eval(), images, torch.ones(1, 64)).maps

    assert torch.equal(explain(model.train(), images, torch.ones(1, 64)).maps, expected)


@pytest.mark.parametrize("form", ["torch.compile(model)", "model.compile()", "compiled encode_image"])
def test_a_compiled_model_gives_the_eager_maps(form: str, images: Tensor) -> None:
    model = build_clip("vit").eval()
    texts = torch.randn(2, 64)
    expected = explain(model, images, texts).maps
    compiled: Any = model
    if form == "torch.compile(model)":
        compiled = torch.compile(model, backend="eager")
    elif form == "model.compile()":
        model.compile(backend="eager")
        model.visual.compile(backend="eager")
    else:
        model.encode_image = torch.compile(model.encode_image, backend="eager")
    with torch.no_grad():
        compiled.encode_image(images)  # compiles before any hook is registered

    assert_close(explain(compiled, images, texts).maps, expected)


def test_a_checkpointing_model_gives_the_same_maps_and_keeps_checkpointing(images: Tensor) -> None:
    model, texts = build_clip("vit"), torch.randn(2, 64)
    expected = explain(model, images, texts, layers=0).maps
    model.set_grad_checkpointing(True)

    assert_close(explain(model, images, texts, layers=0).maps, expected)
    assert model.visual.transformer.grad_checkpointing


def test_a_half_precision_model_gets_images_of_its_own_type(images: Tensor) -> None:
    model = build_clip("vit").to(torch.bfloat16)
    explanation = explain(model, images, torch.randn(2, 64))

    assert explanation.maps.dtype == explanation.similarity.dtype == torch.float32
    assert explanation.maps.isfinite().all()


def test_prompts_may_be_shared_or_per_image_or_embeddings(clip: ClipModel, images: Tensor) -> None:
    shared = explain(clip, images, PROMPTS)
    embeddings = clip.embed_texts(PROMPTS).detach()

    for prompts in ([PROMPTS] * 3, embeddings, embeddings.expand(3, -1, -1), 7 * embeddings):
        explanation = explain(clip, images, prompts)
        assert_close(explanation.maps, shared.maps)
        assert_close(explanation.similarity, shared.similarity)
    swapped = explain(clip, images, [PROMPTS, PROMPTS[::-1], PROMPTS])
    assert_close(swapped.maps[1, 0], shared.maps[1, 1])


def test_similarity_is_the_cosine_without_the_trained_temperature(clip: ClipModel, images: Tensor) -> None:
    before = explain(clip, images, PROMPTS)
    with torch.no_grad():
        clip.module.logit_scale.fill_(9.0)

    after = explain(clip, images, PROMPTS)

    assert torch.equal(before.maps, after.maps)
    with torch.no_grad():
        features = clip.module.encode_image(images, normalize=True)
        texts = clip.module.encode_text(WordTokenizer()(PROMPTS), normalize=True)
    assert_close(after.similarity, features @ texts.T)


@pytest.mark.parametrize("method", ["decomposition", "gradcam", "eigencam", "integrated_gradients", "occlusion"])
def test_embeddings_are_those_of_the_model(method: str, clip: ClipModel, images: Tensor) -> None:
    explanation = explain(clip, images, PROMPTS, method=method, batch_size=2)

    with torch.no_grad():
        assert_close(explanation.embeddings, clip.embed_images(images))


@pytest.mark.parametrize(
    ("settings", "view"),
    [
        ({"flip": True}, lambda images: images.flip(-1)),
        ({"shift": True}, lambda images: shift_images(images, (4, 4))),
        ({"scales": (1.0, 1.5)}, lambda images: resize_images(images, (96, 96))),
    ],
    ids=["flip", "shift", "scales"],
)
def test_embeddings_are_averaged_over_the_views(
    settings: dict[str, Any], view: Callable[[Tensor], Tensor], clip: ClipModel, images: Tensor
) -> None:
    explanation = explain(clip, images, PROMPTS, **settings)

    assert explanation.embeddings is not None
    with torch.no_grad(), clip.tower.native():
        mean = (clip.embed_images(images) + clip.embed_images(view(images))) / 2
        assert_close(explanation.similarity, mean @ clip.embed_texts(PROMPTS).T)
    assert_close(explanation.embeddings, mean)


@pytest.mark.parametrize("method", ["decomposition", "gradcam", "eigencam", "integrated_gradients", "occlusion"])
@pytest.mark.parametrize("count", [1, 7])
def test_prompts_of_another_length_are_refused(method: str, count: int, clip: ClipModel, images: Tensor) -> None:
    with pytest.raises(ConfigError, match=rf"must have 64 numbers.*\(got {count}\)"):
        explain(clip, images, torch.ones(2, count), method=method)


def test_embeddings_have_the_order_of_the_images(clip: ClipModel) -> None:
    sizes = [(64, 64), (96, 64), (64, 64), (32, 96)]
    images = [torch.randn(3, *size) for size in sizes]

    together = explain(clip, images, PROMPTS).embeddings

    assert together is not None
    for image, embedded in zip(images, together, strict=True):
        assert_close(explain(clip, [image], PROMPTS).embeddings, embedded[None])


@pytest.mark.parametrize("target", ["contrast", Contrast(negatives=("a green square", "a red star"))])
def test_contrast_is_subtracted_before_the_rectifier(target: Any, clip: ClipModel, images: Tensor) -> None:
    """By linearity, the unrectified map of the contrast is the difference of the unrectified maps."""

    def signed(capture: Any) -> Tensor:
        return (capture.gradients * capture.activations[:, None]).sum(2)

    negatives = PROMPTS[1:] if target == "contrast" else list(target.negatives)
    own = explain(clip, images, PROMPTS[:1], method=signed).maps[:, 0]
    others = explain(clip, images, negatives, method=signed).maps.mean(1)

    contrast = explain(clip, images, PROMPTS, method=signed, target=target)

    assert_close(contrast.maps[:, 0], own - others, atol=1e-6, rtol=1e-4)
    rectified = explain(clip, images, PROMPTS, method="hirescam", target=target)
    assert_close(rectified.maps[:, 0], (own - others).relu(), atol=1e-6, rtol=1e-4)
    assert rectified.similarity.shape == (3, 2), "similarity holds the cosines of the prompts, not the contrasts"


def test_contrast_of_a_single_prompt_is_rejected_with_a_remedy(clip: ClipModel, images: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"at least two prompts.*negatives"):
        explain(clip, images, PROMPTS[:1], target="contrast")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.randn(64, 64)}, r"\[3, height, width\].*\(64, 64\)"),
        ({"images": torch.randn(2, 3, 60, 70)}, r"whole cells of its grid \(got 60x70 pixels\).*example to 64x72"),
        ({"images": torch.randn(2, 3, 3, 64)}, "3x64 is smaller than one cell"),
        ({"images": torch.zeros(2, 3, 64, 64, dtype=torch.uint8)}, "preprocessed float pixels.*uint8"),
        ({"images": torch.randn(0, 3, 64, 64)}, "n at least 1"),
        ({"prompts": " "}, r"non-empty strings \(got ' '\)"),
        ({"prompts": []}, "a list of strings"),
        ({"prompts": ["a", " "]}, r"non-empty strings \(got ' '\)"),
        ({"prompts": [["a"], ["b", "c"], ["d"]]}, r"all of one length.*lengths \[1, 2, 1\]"),
        ({"prompts": [["a"], ["b"]]}, "2 lists .* for 3 images"),
        ({"prompts": torch.randn(2, 1, 64)}, r"\[p, d\] or \[3, p, d\]"),
        ({"method": "gradcampp"}, "auto.*gradcam, gradcam_pp, xgradcam.*gem, or a function"),
        ({"target": "logit"}, "'similarity', 'contrast'"),
        ({"layers": "visual.nothing"}, "Layers worth mapping"),
        ({"layers": []}, "at least one layer"),
        ({"fuse": "median"}, "mean, max, product"),
        ({"scales": ()}, "positive factors"),
        ({"scales": (0.01,)}, "smaller than one cell"),
        ({"batch_size": 0}, "at least 1"),
        (
            {"images": torch.full((3, 3, 64, 64), torch.nan)},
            r"must be finite; 3 contain NaN or infinity, the first has index 0",
        ),
        ({"images": [torch.randn(3, 64, 64), torch.randn(3, 30, 32)]}, r"whole cells of its grid \(got 30x32 pixels\)"),
        ({"images": np.zeros((0, 10, 3), np.uint8)}, r"the image has no pixels \(got 10x0\)"),
        ({"images": [np.zeros((10, 0, 3), np.uint8)]}, r"the image has no pixels \(got 0x10\)"),
        ({"images": Image.new("RGB", (0, 5))}, "the image has no pixels"),
        ({"images": {"pixel_values": torch.zeros(1)}}, r"OpenClipViT takes images as a tensor.*pixel_values"),
        ({"prompts": torch.randn(2, 32)}, r"must have 64 numbers.*got 32"),
        ({"prompts": torch.ones(2, 64, dtype=torch.long)}, r"must be floats.*int64.*embed_tokens"),
        ({"prompts": torch.zeros(2, 64)}, "none of them all zero"),
        ({"target": Contrast(torch.randn(2, 32))}, r"embeddings of one length \(got 64 and 32\)"),
        ({"scales": (float("nan"),)}, "positive factors"),
        ({"method": "gae", "fuse": "max"}, "gae makes one map of all its layers"),
        ({"method": "legrad", "checkpointing": True}, "checkpointing is for methods of one layer"),
        ({"method": lambda capture: capture.activations[:, 0]}, r"must return maps \[b, p, h, w\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_invalid_arguments_are_rejected_with_their_value(
    change: dict[str, Any], message: str, clip: ClipModel, images: Tensor, unchecked: None
) -> None:
    arguments = {"images": images, "prompts": PROMPTS, **change}
    with pytest.raises(ConfigError, match=message):
        explain(clip, **arguments)


def test_the_overlay_is_brightest_where_the_map_is_largest(clip: ClipModel, images: Tensor) -> None:
    explanation = explain(clip, images, PROMPTS, method="hirescam")

    overlay = explanation.overlay(torch.full((3, 3, 64, 64), 90, dtype=torch.uint8))

    assert overlay.shape == (3, 2, 3, 64, 64)
    brightest = overlay.float().mean(2).flatten(2).argmax(2)
    assert torch.equal(brightest, explanation.resize((64, 64)).flatten(2).argmax(2))
    assert explanation.normalize().amax() == 1
    assert explanation.normalize().amin() == 0


def test_the_overlay_shows_no_heat_where_a_signed_map_is_not_positive() -> None:
    maps = torch.tensor([[[[4.0, -4.0], [-1.0, 0.0]]]])
    explanation = Explanation(maps, torch.zeros(1, 1), ("layer",), "decomposition", "similarity")

    overlay = explanation.overlay(torch.full((1, 3, 2, 2), 90, dtype=torch.uint8))[0, 0]

    assert (overlay[:, 0, 1] == overlay[:, 1, 1]).all()
    assert (overlay[:, 1, 0] == overlay[:, 1, 1]).all()
    assert overlay[:, 0, 0].float().mean() > 1.5 * overlay[:, 1, 1].float().mean()


def test_batch_size_bounds_the_images_per_forward(clip: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    encode = clip.module.encode_image
    monkeypatch.setattr(clip.module, "encode_image", lambda images: (sizes.append(len(images)), encode(images))[1])

    explain(clip, torch.randn(7, 3, 64, 64), PROMPTS, method="hirescam", batch_size=3)

    assert sizes == [3, 3, 1]


def test_a_pass_keeps_no_graph_before_its_layer(untrained: open_clip.CLIP, images: Tensor) -> None:
    """Blocks before the layer run without grad, those after it with grad."""
    modes: list[bool] = []
    clip = find_clip(untrained)
    for block in untrained.visual.transformer.resblocks:
        block.register_forward_pre_hook(lambda *_: modes.append(torch.is_grad_enabled()))

    explain(clip, images, torch.randn(1, 64), method="gradcam", layers=1)

    assert modes == [False, False, True]
