"""Monitor a training with the Trainer of transformers: a callback of a few lines.

Run it:  python examples/monitor_transformers_trainer.py
"""

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from clipcam_lightning import ClipCamMonitor
from clipcam_lightning.shapes_world import WordTokenizer, demo, model_input, trained_clip


def draw_pairs() -> TensorDataset:
    """Draw images and the token ids of their captions."""
    scenes = demo.stamped_scenes(256, seed=1)
    return TensorDataset(model_input(torch.from_numpy(scenes.images), 64), WordTokenizer()(scenes.captions))


class MonitorCallback(TrainerCallback):
    """Evaluates before the training and after each epoch, on the first process."""

    def __init__(self, monitor: ClipCamMonitor) -> None:
        self.monitor = monitor

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self.evaluate(state, **objects)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self.evaluate(state, **objects)

    def on_train_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self.monitor.close()

    def evaluate(self, state: Any, model: nn.Module, **objects: Any) -> None:
        if state.is_world_process_zero:
            print(self.monitor.evaluate(model, state.global_step, int(state.epoch or 0)))


class Contrastive(nn.Module):
    """A CLIP with its loss, as the Trainer calls models."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = trained_clip("vit")

    def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        features, texts, scale = self.clip(images, tokens)
        return {"loss": F.cross_entropy(scale * features @ texts.T, torch.arange(len(images)))}


def main(folder: str) -> None:
    torch.manual_seed(0)
    monitor = ClipCamMonitor(demo.demo_probes(), tokenizer=WordTokenizer(), dirpath=folder, on_drift="log")
    trainer = Trainer(
        Contrastive(),
        TrainingArguments(
            output_dir=folder,
            num_train_epochs=2,
            per_device_train_batch_size=32,
            learning_rate=1e-4,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=draw_pairs(),
        data_collator=lambda pairs: dict(
            zip(("images", "tokens"), map(torch.stack, zip(*pairs, strict=True)), strict=True)
        ),
        callbacks=[MonitorCallback(monitor)],
    )
    trainer.train()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as files:
        main(files)
