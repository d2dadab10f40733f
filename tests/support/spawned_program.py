"""A distributed training on two processes that Lightning spawns, started by test_copies.py.

``python tests/support/spawned_program.py FOLDER`` writes the results of each rank to ``FOLDER/rank-<n>.pt``.
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from clipcam_lightning import ClipCamCallback
from tests.support.faulty import tiny_module, two_probes
from tests.support.modules import Pairs


class Results(pl.Callback):
    """Writes steps of the evaluations and metrics of each rank to a file.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (callback,) = (each for each in trainer.callbacks if isinstance(each, ClipCamCallback))
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "clipcam" in name}
        results = {"steps": [entry.step for entry in callback.history], "metrics": metrics}
        torch.save(results, self.folder / f"rank-{trainer.global_rank}.pt")


def main(folder: Path) -> None:
    callback = ClipCamCallback(
        two_probes(), method="gradcam", on_drift="log", on_error="raise", dirpath=folder / "evaluations"
    )
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=2,
        strategy="ddp_spawn_find_unused_parameters_true",
        callbacks=[callback, Results(folder)],
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = (DataLoader(Pairs(seed=seed), batch_size=4) for seed in (0, 1))
    trainer.fit(tiny_module(), *data)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
