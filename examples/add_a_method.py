"""Explain with your own method: a function from what a pass recorded to raw maps.

There are two. One reads activations and gradients, as most CAM methods do; a plain function is enough. The other reads
attention and declares it, so that the pass records attention and a tower without any is refused. The model is small and
its weights are random, so the maps only show how a method is written.

Run it:  python examples/add_a_method.py
"""

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning import AttentionCapture, Capture, Method, explain
from clipcam_lightning.shapes_world import WordTokenizer, build_clip, draw_scenes, model_input


def sensitivity(capture: Capture) -> Float[Tensor, "b p h w"]:
    """Measure how much the similarity changes with each cell: the length of the gradient."""
    return capture.gradients.square().sum(dim=2).sqrt()


def last_attention(capture: AttentionCapture) -> Float[Tensor, "b 1 h w"]:
    """Average the attention of the last block's class token over all heads; no prompt is needed."""
    attention = capture.attentions[-1].first_query().weights()  # [b, heads, 1, tokens]
    return capture.to_map(attention.mean(dim=1))


def main() -> None:
    torch.manual_seed(0)
    model = build_clip("vit").eval()
    scenes = draw_scenes(1, seed=0)
    images = model_input(torch.from_numpy(scenes.images), 64)

    own = (sensitivity, Method(last_attention, AttentionCapture, needs=("attention",), blocks=1))
    for method in own:
        explanation = explain(model, images, scenes.captions, method=method, tokenizer=WordTokenizer())
        print(f"{explanation.method} of {scenes.captions[0]!r}\n{draw(explanation.normalize()[0, 0])}\n")


def draw(map_: Float[Tensor, "h w"]) -> str:
    """Draw a map from 0 to 1 with characters."""
    shades = " ░▒▓█"
    return "\n".join("".join(2 * shades[round(4 * float(value))] for value in row) for row in map_)


if __name__ == "__main__":
    main()
