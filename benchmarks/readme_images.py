"""Draw the images of README and docs, in ``docs/``, as the program draws them today.

The panel shows one probe of a fine-tuning on cut-outs of photographs, whose images carry a stamp. The animation and the
screenshot of the tab show a run of the demo. The confusion is one of the small ViT's. The tab needs a Chromium.

Run it:  python -m benchmarks.readme_images  (``--run clipcam_demo``: shows a run that exists instead of training one)
"""

import argparse
import io
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from playwright.sync_api import Frame, Page, sync_playwright

from benchmarks.finetunes import EPOCHS, STEPS, FineTune, ProbeChoice, fine_tune, load_epoch
from benchmarks.tensorboard_tab import PAINTED, tensorboard
from benchmarks.worlds.world import WORLDS
from clipcam_lightning import Probe, ProbeSet, confusion_panel, confusions, evaluate, find_clip, probe_panel
from clipcam_lightning.shapes_world import CAPTIONS, WordTokenizer, draw_scenes, trained_clip
from clipcam_lightning.shapes_world.demo import main as train
from clipcam_lightning.storage.jpeg import encode_jpeg

DOCS = Path(__file__).parents[1] / "docs"
STAMPED, PROBES, PANEL_OF = FineTune("cutouts", "class token", "stamp", 0), 24, 13  # a cat
SCENE = {"count": 40, "seed": 27, "index": 21, "object": 1}  # a green star, beside a yellow square
JPEG_QUALITY = 85
WINDOW = {"width": 1400, "height": 1000}  # CSS pixels
GIF_WINDOW, GIF_WIDTH, GIF_COLORS = {"width": 1100, "height": 760}, 880, 256
FRAME, LAST_FRAME = 1000, 3000  # milliseconds


def draw_panel(folder: Path) -> bytes:
    """Draw a probe before and after a fine-tuning, and print the alarm.

    Args:
        folder: for the weights of the fine-tuning.
    """
    run, drawn = STAMPED, STAMPED.draw_probes(ProbeChoice(PROBES))
    print(fine_tune(run, folder))
    captions = [run.images.captions[number] for number in drawn.classes]
    parts = zip(drawn.images, captions, drawn.masks, strict=True)
    probes = ProbeSet([Probe(image, caption, mask=mask) for image, caption, mask in parts])
    model, tokenizer = run.load_model(), WORLDS[run.world].tokenizer
    load_epoch(run, folder, 0, model)
    before = evaluate(model, probes, tokenizer=tokenizer).snapshot
    load_epoch(run, folder, EPOCHS, model)
    after = evaluate(model, probes, tokenizer=tokenizer, baseline=before)
    print(after.report)
    i, mask = PANEL_OF, torch.from_numpy(drawn.masks[PANEL_OF])
    steps = 0, EPOCHS * STEPS
    panel = probe_panel(
        after.pixels[i], before.maps[i], after.snapshot.maps[i], after.report.probes[i], steps=steps, mask=mask
    )
    return encode_jpeg(panel, JPEG_QUALITY)


def draw_confusion() -> bytes:
    """Draw what the small ViT takes for another caption in one scene."""
    scenes, i, k = draw_scenes(SCENE["count"], objects=2, seed=SCENE["seed"]), SCENE["index"], SCENE["object"]
    clip = find_clip(trained_clip("vit"), tokenizer=WordTokenizer())
    probes = ProbeSet([Probe(scenes.images[i], CAPTIONS[scenes.objects[i, k]])])
    (confusion,) = confusions(clip, probes, CAPTIONS)
    pixels, mask = clip.preprocessing.pixels(scenes.images[i])[0], torch.from_numpy(scenes.masks[i, k])
    return encode_jpeg(confusion_panel(pixels, confusion, mask), JPEG_QUALITY)


def shoot_tab(folder: Path) -> tuple[bytes, list[Image.Image]]:
    """Photograph the tab: a screenshot in TensorBoard's page, and of the tab alone at each evaluation."""
    with tensorboard(folder, "fast") as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=WINDOW)
        frame = _open(page, f"{address}#clipcam")
        shot = page.screenshot()
        page.set_viewport_size(GIF_WINDOW)
        slider = frame.get_by_role("slider", name="Evaluation shown")
        frames = []
        for number in range(int(slider.get_attribute("max") or 0) + 1):
            slider.fill(str(number))
            page.wait_for_timeout(500)
            frames.append(Image.open(io.BytesIO(page.locator("iframe").screenshot())).convert("RGB"))
        browser.close()
    return shot, frames


def _open(page: Page, address: str) -> Frame:
    page.goto(address)
    page.frame_locator("iframe").locator(".cell").first.wait_for(timeout=120_000)
    frame = next(frame for frame in page.frames if "plugin_entry" in frame.url)
    frame.evaluate(PAINTED)
    page.wait_for_timeout(3000)  # TensorBoard's own page draws icons and run list last
    return frame


def animate(frames: Sequence[Image.Image]) -> bytes:
    """Encode an animation whose last frame stays longer."""
    size = GIF_WIDTH, round(frames[0].height * GIF_WIDTH / frames[0].width)
    small = [frame.resize(size, Image.Resampling.LANCZOS).quantize(GIF_COLORS) for frame in frames]
    file, durations = io.BytesIO(), [FRAME] * (len(small) - 1) + [LAST_FRAME]
    small[0].save(file, "GIF", save_all=True, append_images=small[1:], duration=durations, loop=0, optimize=True)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a demo")
    parser.add_argument("--weights", type=Path, help="folder of the fine-tuning; what is there is not trained again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.run
        if folder is None:
            folder = Path(temporary) / "clipcam_demo"
            train(folder)
        (DOCS / "panel.jpg").write_bytes(draw_panel(options.weights or Path(temporary) / "weights"))
        (DOCS / "confusion.jpg").write_bytes(draw_confusion())
        shot, frames = shoot_tab(folder)
        (DOCS / "tab.png").write_bytes(shot)
        (DOCS / "tab.gif").write_bytes(animate(frames))


if __name__ == "__main__":
    main()
