"""Monitor a plain PyTorch training: one line before it, one line in each epoch.

Run it:  python examples/monitor_a_pytorch_loop.py
"""

import tempfile

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from clipcam_lightning import ClipCamMonitor
from clipcam_lightning.shapes_world import WordTokenizer, demo, model_input, trained_clip


def draw_pairs() -> TensorDataset:
    """Draw images and the token ids of their captions."""
    scenes = demo.stamped_scenes(256, seed=1)
    return TensorDataset(model_input(torch.from_numpy(scenes.images), 64), WordTokenizer()(scenes.captions))


def main(folder: str) -> None:
    torch.manual_seed(0)
    model = trained_clip("vit").train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    loader = DataLoader(draw_pairs(), batch_size=32, shuffle=True)
    monitor = ClipCamMonitor(demo.demo_probes(), tokenizer=WordTokenizer(), dirpath=folder, on_drift="log")

    monitor.evaluate(model, step=0)
    step = 0
    for epoch in range(2):
        for images, tokens in loader:
            features, texts, scale = model(images, tokens)
            loss = F.cross_entropy(scale * features @ texts.T, torch.arange(len(images)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        print(monitor.evaluate(model, step, epoch))
    monitor.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as files:
        main(files)
