"""Draw the images of the README, in ``docs/``, as the program draws them today.

The panel and the screenshot of the tab show a run of the demo; the panel is the image that TensorBoard has. The
confusion is one of the small ViT's. The screenshot needs a Chromium.

Run it:  python -m benchmarks.readme_images  (``--run clipcam_demo``: shows a run that exists instead of training one)
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.tensorboard_tab import PAINTED, tensorboard
from clipcam_lightning import Probe, ProbeSet, confusion_panel, confusions, find_clip
from clipcam_lightning.shapes_world import CAPTIONS, WordTokenizer, draw_scenes, trained_clip
from clipcam_lightning.shapes_world.demo import main as train
from clipcam_lightning.storage.jpeg import encode_jpeg

DOCS = Path(__file__).parents[1] / "docs"

SCENE = {"count": 40, "seed": 27, "index": 21, "object": 1}  # a green star, beside a yellow square
JPEG_QUALITY = 85
WINDOW = {"width": 1400, "height": 1000}  # CSS pixels


def draw_panel(run: Path) -> bytes:
    """Read the last panel of a probe from the event file of a run."""
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    file: bytes = events.Images(PANEL_OF)[-1].encoded_image_string
    return file


def draw_confusion() -> bytes:
    """Draw what the small ViT takes for another caption in one scene."""
    scenes, i, k = draw_scenes(SCENE["count"], objects=2, seed=SCENE["seed"]), SCENE["index"], SCENE["object"]
    clip = find_clip(trained_clip("vit"), tokenizer=WordTokenizer())
    probes = ProbeSet([Probe(scenes.images[i], CAPTIONS[scenes.objects[i, k]])])
    (confusion,) = confusions(clip, probes, CAPTIONS)
    pixels, mask = clip.preprocessing.pixels(scenes.images[i])[0], torch.from_numpy(scenes.masks[i, k])
    return encode_jpeg(confusion_panel(pixels, confusion, mask), JPEG_QUALITY)


def shoot_tab(folder: Path) -> bytes:
    """Take a screenshot of the tab in TensorBoard's page."""
    with tensorboard(folder, "fast") as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=WINDOW)
        page.goto(f"{address}#clipcam")
        page.frame_locator("iframe").locator(".cell").first.wait_for(timeout=120_000)
        frame = next(frame for frame in page.frames if "plugin_entry" in frame.url)
        frame.evaluate(PAINTED)
        page.wait_for_timeout(3000)  # TensorBoard's own page draws icons and run list last
        shot = page.screenshot()
        browser.close()
    return shot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a demo")
    folder = parser.parse_args().run
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            folder = Path(temporary) / "clipcam_demo"
            train(folder)
        (run,) = folder.glob("stamped/version_*")
        (DOCS / "panel.jpg").write_bytes(draw_panel(run))
        (DOCS / "confusion.jpg").write_bytes(draw_confusion())
        (DOCS / "tab.png").write_bytes(shoot_tab(folder))


if __name__ == "__main__":
    main()
