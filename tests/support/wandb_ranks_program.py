"""A distributed training on two processes that logs to W&B, started by test_loggers.py.

``python tests/support/wandb_ranks_program.py FOLDER`` writes the run's folder, as each rank has it, to
``FOLDER/rank-<n>.txt``.
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import WandbLogger
from torch.utils.data import DataLoader

from clipcam_lightning import ClipCamCallback
from tests.support.faulty import tiny_module, two_probes
from tests.support.modules import Pairs


def main(folder: Path) -> None:
    callback = ClipCamCallback(two_probes(), method="gradcam", on_drift="log", on_error="raise")
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=2,
        strategy="ddp_find_unused_parameters_true",
        callbacks=[callback],
        logger=WandbLogger(project="birds", save_dir=folder, offline=True),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(tiny_module(), *(DataLoader(Pairs(seed=seed), batch_size=4) for seed in (0, 1)))
    (folder / f"rank-{trainer.global_rank}.txt").write_text(str(callback.directory))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
