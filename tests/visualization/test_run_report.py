"""What the page of a training says of its baseline."""

from dataclasses import replace

import torch

from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.monitoring.evaluate import evaluate
from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip
from clipcam_lightning.shapes_world.scenes import draw_scenes
from clipcam_lightning.visualization.run_report import describe_trust


def test_it_is_said_whether_maps_of_the_baseline_can_be_compared_with() -> None:
    clip = find_clip(build_clip("vit"), tokenizer=WordTokenizer())
    baseline = evaluate(clip, [(draw_scenes(1).images[0], "a red circle")]).baseline

    assert describe_trust(None).startswith("It was not measured")
    distrusted = describe_trust(replace(baseline, map_agrees=torch.zeros(1)))
    assert distrusted.startswith("At the baseline, 0 of 1 maps agree with occlusion. So their drift raises no alarm")
    without_maps = replace(baseline, maps=torch.zeros_like(baseline.maps), map_agrees=torch.zeros(1))
    assert describe_trust(without_maps) == (
        "All maps of the baseline are degenerate, so there is no map to compare with."
    )
