"""Monitor a training with Lightning Fabric: the first process evaluates, the others wait.

Run it:  python examples/monitor_fabric.py
"""

import tempfile

import torch
from lightning.fabric import Fabric
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from clipcam_lightning import ClipCamMonitor
from clipcam_lightning.shapes_world import WordTokenizer, demo, model_input, trained_clip


def draw_pairs() -> TensorDataset:
    """Draw images and the token ids of their captions."""
    scenes = demo.stamped_scenes(256, seed=1)
    return TensorDataset(model_input(torch.from_numpy(scenes.images), 64), WordTokenizer()(scenes.captions))


def main(folder: str) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.seed_everything(0)
    clip = trained_clip("vit").train()
    model, optimizer = fabric.setup(clip, torch.optim.AdamW(clip.parameters(), 1e-4))
    loader = fabric.setup_dataloaders(DataLoader(draw_pairs(), batch_size=32, shuffle=True))
    monitor = ClipCamMonitor(demo.demo_probes(), tokenizer=WordTokenizer(), dirpath=folder, on_drift="log")

    def evaluate(step: int, epoch: int = 0) -> None:
        if fabric.is_global_zero:
            print(monitor.evaluate(clip, step, epoch))
        fabric.barrier()

    evaluate(step=0)
    step = 0
    for epoch in range(2):
        for images, tokens in loader:
            features, texts, scale = model(images, tokens)
            loss = F.cross_entropy(scale * features @ texts.T, torch.arange(len(images), device=fabric.device))
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            step += 1
        evaluate(step, epoch)
    monitor.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as files:
        main(files)
