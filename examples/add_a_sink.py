"""Write evaluations to a place of your own: a class with a method ``write``.

This sink keeps the metrics of each probe in a table of SQLite. One that sends something over a network would be
wrapped, ``BackgroundSink(DatabaseSink(...))``, so that the training does not wait for it.

Run it:  python examples/add_a_sink.py
"""

import sqlite3
import tempfile
from pathlib import Path

import lightning.pytorch as pl

from clipcam_lightning import ClipCamCallback, Evaluation, Sink
from clipcam_lightning.shapes_world import demo, trained_clip


class DatabaseSink(Sink):
    """Keeps one row per probe and evaluation.

    Args:
        file: of the database.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def write(self, evaluation: Evaluation) -> None:
        report = evaluation.report
        rows = [(report.step, probe.name, probe.drift, probe.similarity, probe.flagged) for probe in report.probes]
        with sqlite3.connect(self.file) as database:
            database.execute("CREATE TABLE IF NOT EXISTS probes (step, name, drift, similarity, flagged)")
            database.executemany("INSERT INTO probes VALUES (?, ?, ?, ?, ?)", rows)


def main(folder: Path) -> None:
    pl.seed_everything(0)
    file = folder / "evaluations.db"
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[ClipCamCallback(demo.demo_probes(), sinks=[DatabaseSink(file)], on_drift="log")],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(demo.FineTunedClip(trained_clip("vit").train()), demo.loader(demo.stamped_scenes(256, seed=1)))
    with sqlite3.connect(file) as database:
        for step, name, drift in database.execute("SELECT step, name, drift FROM probes ORDER BY drift DESC LIMIT 3"):
            print(f"step {step}: {name} drifted by {drift:.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as logs:
        main(Path(logs))
