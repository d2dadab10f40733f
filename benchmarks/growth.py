"""How time per image and memory grow with the number of images."""

from dataclasses import dataclass
from statistics import median
from time import perf_counter

import open_clip
import torch
from jaxtyping import Float
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import peak_bytes
from clipcam_lightning import ClipModel, Explanation, explain, find_clip
from clipcam_lightning.cam.explain import BATCH_SIZE

SIZES, UNIT, ROUNDS = (16, 64, 256, 1024, 4096), 256, 4
# Small enough for thousands of images, and large enough for the model to take most of the time.
VISION = CLIPVisionCfg(layers=12, width=384, head_width=64, patch_size=16, image_size=64)
TEXT = CLIPTextCfg(context_length=8, vocab_size=16, width=64, heads=2, layers=1)


@dataclass(frozen=True)
class Growth:
    """Time and memory of one call.

    Attributes:
        images: in the call.
        time: seconds per image in units of those at ``UNIT`` images in the same round; the median.
        milliseconds: per image; the median.
        megabytes: peak memory, without the maps and similarities that the call returns.
    """

    images: int
    time: float
    milliseconds: float
    megabytes: float

    @property
    def batches(self) -> int:
        """How many batches of the default size the call makes."""
        return -(-self.images // BATCH_SIZE)


def growth(device: torch.device, sizes: tuple[int, ...] = SIZES) -> list[Growth]:
    """Measure Grad-CAM of one prompt for each number of images.

    Args:
        device: of the model.
        sizes: numbers of images.
    """
    clip = find_clip(open_clip.CLIP(embed_dim=128, vision_cfg=VISION, text_cfg=TEXT).eval().to(device))
    images = torch.randn(max(sizes), 3, *clip.tower.input_size, device=device)
    text = F.normalize(torch.randn(1, 128, device=device), dim=-1)
    memory = {count: _peak_without_result(clip, images[:count], text, device) for count in sizes}
    per_image: dict[int, list[float]] = {count: [] for count in sizes}
    for _ in track(range(ROUNDS), "growth", transient=True):
        for count in sizes:
            per_image[count].append(_seconds(clip, images[:count], text, repeats=max(1, UNIT // count)) / count)
    return [
        Growth(
            images=count,
            time=round(median(own / unit for own, unit in zip(per_image[count], per_image[UNIT], strict=True)), 3),
            milliseconds=round(median(per_image[count]) * 1e3, 3),
            megabytes=round(memory[count] / 2**20, 2),
        )
        for count in sizes
    ]


def print_growth(console: Console, rows: list[Growth]) -> None:
    """Print one row per number of images."""
    table = Table(title=f"{VISION.layers} blocks of width {VISION.width}, {VISION.image_size} px, gradcam, P = 1")
    for column in ("images", "batches", "time per image", "ms per image", "peak MB without result"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = (row.images, row.batches, f"{row.time:.3f}", f"{row.milliseconds:.2f}", f"{row.megabytes:.1f}")
        table.add_row(*map(str, cells))
    console.print(table)


def _peak_without_result(clip: ClipModel, images: Float[Tensor, "n 3 y x"], text: Tensor, device: torch.device) -> int:
    results: list[Explanation] = []
    peak = peak_bytes(lambda: results.append(explain(clip, images, text, method="gradcam")), device)
    return peak - results[0].maps.nbytes - results[0].similarity.nbytes


def _seconds(clip: ClipModel, images: Float[Tensor, "n 3 y x"], text: Tensor, repeats: int) -> float:
    """Measure the seconds of one call, averaged over several.

    The first call is not measured: after a call of another size, memory has to be allocated anew.
    """
    explain(clip, images[:UNIT], text, method="gradcam")
    start = perf_counter()
    for _ in range(repeats):
        explain(clip, images, text, method="gradcam").maps.cpu()  # waits for a GPU
    return (perf_counter() - start) / repeats
