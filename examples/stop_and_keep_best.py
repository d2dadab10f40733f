"""Stop when attention drifts too far, and keep the weights with the most energy on the objects.

The training is that of the demo: hazy images with a stamp that gives the caption away. ``EarlyStopping`` and
``ModelCheckpoint`` read the callback's metrics in the epoch in which they were measured.

Run it:  python examples/stop_and_keep_best.py
"""

import tempfile

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from clipcam_lightning import ClipCamCallback
from clipcam_lightning.shapes_world import demo, trained_clip


def main(folder: str) -> None:
    pl.seed_everything(0)
    best = ModelCheckpoint(monitor="clipcam/energy_inside_mask", mode="max")
    # Some drift is healthy, so training stops at a threshold and not when drift rises: mean drift above 0.15.
    limit = EarlyStopping(monitor="clipcam/drift", patience=100, divergence_threshold=0.15)
    trainer = pl.Trainer(
        max_epochs=8,
        accelerator="cpu",
        callbacks=[ClipCamCallback(demo.demo_probes(), on_drift="log"), limit, best],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        demo.FineTunedClip(trained_clip("vit").train()),
        demo.loader(demo.stamped_scenes(1280, seed=1), shuffle=True),
        demo.loader(demo.stamped_scenes(64, seed=2)),
    )
    print(f"stopped in epoch {limit.stopped_epoch}: mean drift {float(trainer.callback_metrics['clipcam/drift']):.2f}")
    print(f"kept {best.best_model_path}: energy on the objects {float(best.best_model_score or 0):.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as logs:
        main(logs)
