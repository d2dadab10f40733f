"""Monitor open_clip's own training loop: evaluate after each of its epochs.

``open_clip_train.main`` calls ``train_one_epoch`` once per epoch. In a copy of it, add the lines with ``monitor``.

Run it:  python examples/monitor_open_clip_training.py
"""

import tempfile
from types import SimpleNamespace

import open_clip
import torch
from open_clip_train.train import train_one_epoch
from torch.utils.data import DataLoader, TensorDataset

from clipcam_lightning import ClipCamMonitor
from clipcam_lightning.shapes_world import WordTokenizer, demo, model_input, trained_clip

ARGUMENTS = SimpleNamespace(
    device="cpu",
    precision="fp32",
    distill=False,
    accum_freq=1,
    skip_scheduler=True,
    horovod=False,
    grad_clip_norm=None,
    rank=0,
    local_rank=0,
    log_local=False,
    log_every_n_steps=100,
    batch_size=32,
    world_size=1,
    wandb=False,
)


def draw_pairs() -> TensorDataset:
    """Draw images and the token ids of their captions."""
    scenes = demo.stamped_scenes(256, seed=1)
    return TensorDataset(model_input(torch.from_numpy(scenes.images), 64), WordTokenizer()(scenes.captions))


def main(folder: str) -> None:
    torch.manual_seed(0)
    model = trained_clip("vit")
    model.output_dict = True
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    loader = DataLoader(draw_pairs(), batch_size=32, shuffle=True)
    loader.num_batches, loader.num_samples = len(loader), 256  # which the loop reads, as its own data sets have them
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda _epoch: None)}

    with ClipCamMonitor(demo.demo_probes(), tokenizer=WordTokenizer(), dirpath=folder, on_drift="log") as monitor:
        monitor.evaluate(model, step=0)
        for epoch in range(2):
            train_one_epoch(model, data, open_clip.ClipLoss(), epoch, optimizer, None, None, None, ARGUMENTS)
            print(monitor.evaluate(model, step=len(loader) * (epoch + 1), epoch=epoch))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as files:
        main(files)
