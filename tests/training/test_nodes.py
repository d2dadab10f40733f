"""Trainings on two nodes without a shared disk: probes and baseline of the first, and errors instead of hangs."""

import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from clipcam_lightning import ClipCamMonitor, Snapshot
from clipcam_lightning.shapes_world.models import build_clip
from tests.support.modules import FineTuning
from tests.support.nodes import Node, reason_against_nodes, running_nodes
from tests.support.nodes_program import TIMEOUT, TRAININGS
from tests.support.ranks_program import probes

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(bool(reason_against_nodes()), reason=reason_against_nodes())]

PROGRAM = Path(__file__).parents[1] / "support/nodes_program.py"
WATCHDOG = 240  # seconds after which a run counts as hanging
END = 20  # seconds that Lightning and torchrun may take to end after an error

Run = Callable[..., tuple[list[dict[str, Any]], Path]]


def make_disks(folder: Path) -> Path:
    """Create the disks of two nodes, the first with probes and with a baseline of another model."""
    for rank in range(2):
        (folder / f"disk-{rank}").mkdir()
    disk = folder / "disk-0"
    probes().save(disk / "probes.safetensors")
    torch.manual_seed(9)
    with ClipCamMonitor(probes(), dirpath=folder / "baseline", on_error="raise") as monitor:
        monitor.evaluate(FineTuning(clip=build_clip("vit")), step=0)
        assert monitor.snapshot is not None
        monitor.snapshot.save(disk / "baseline.safetensors")
    return folder


def wait(node: Node, seconds: float) -> int:
    """Wait until a node ends, and return its exit code."""
    try:
        return node.process.wait(seconds)
    except subprocess.TimeoutExpired:
        pytest.fail(f"a node did not end in {seconds} seconds:\n{node.output[-3000:]}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A function that runs a scenario once, and returns the results of all ranks and the folder with the disks."""

    @cache
    def run_once(scenario: str, ranks_per_node: int = 1) -> tuple[list[dict[str, Any]], Path]:
        folder = make_disks(tmp_path_factory.mktemp(scenario))
        arguments = (scenario, str(folder / "disk"))
        with running_nodes(folder, PROGRAM, *arguments, ranks_per_node=ranks_per_node) as nodes:
            for node in nodes:
                assert wait(node, WATCHDOG) == 0, node.output[-4000:]
        files = [folder / f"disk-{rank // ranks_per_node}/rank-{rank}.pt" for rank in range(2 * ranks_per_node)]
        return [torch.load(file) for file in files], folder

    return run_once


CASES = [("ddp", 1), ("fully_shard", 1), ("ddp", 2)]


@pytest.mark.parametrize(("training", "ranks_per_node"), CASES)
def test_metrics_and_maps_on_two_nodes_are_those_of_one_process(
    training: str, ranks_per_node: int, run: Run, tmp_path: Path
) -> None:
    ranks, folder = run("monitored", ranks_per_node)
    first, *others = (rank[training] for rank in ranks)
    disk = folder / "disk-0"
    files = {"probes": disk / "probes.safetensors", "baseline": disk / "baseline.safetensors"}
    module = TRAININGS[training]()
    expected = []
    with ClipCamMonitor(**files, dirpath=tmp_path, on_drift="log", on_error="raise") as monitor:
        for weights in (module.state_dict(), *first["epochs"]):
            module.load_state_dict(weights)
            monitor.evaluate(module, step=len(expected))
            expected.append(({f"clipcam/{name}": value for name, value in monitor.metrics.items()}, monitor.snapshot))

    assert all(other["metrics"] == first["metrics"] for other in others)
    assert first["metrics"][-1]["clipcam/drift"] > 0
    for metrics, (expected_metrics, _) in zip(first["metrics"], expected[1:], strict=True):
        assert metrics == pytest.approx(expected_metrics, rel=1e-3, abs=1e-5)
    snapshots = [Snapshot.load(file) for file in sorted((disk / training).rglob("step-*.safetensors"))]
    for snapshot, (_, expected_snapshot) in zip(snapshots, expected, strict=True):
        assert expected_snapshot is not None
        assert_close(snapshot.maps, expected_snapshot.maps, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("ranks_per_node", [1, 2])
def test_the_second_node_writes_no_file(ranks_per_node: int, run: Run) -> None:
    _, folder = run("monitored", ranks_per_node)
    results = {f"rank-{rank}.pt" for rank in range(ranks_per_node, 2 * ranks_per_node)}
    assert {path.name for path in (folder / "disk-1").rglob("*")} == results


@pytest.mark.parametrize("fault", ["killed", "unplugged"])
def test_a_node_that_dies_in_an_evaluation_is_an_error_on_the_other(fault: str, tmp_path: Path) -> None:
    folder = make_disks(tmp_path)
    with running_nodes(folder, PROGRAM, "asleep", str(folder / "disk")) as (first, second):
        while not (folder / "disk-1" / "asleep").exists():
            assert second.process.poll() is None, second.output[-3000:]
            time.sleep(0.1)
        if fault == "unplugged":
            second.unplug()
        second.kill()
        code = wait(first, TIMEOUT + END)

    assert code != 0
    assert "OutOfStepError: rank 0 failed in an exchange" in first.output
    assert not (folder / "disk-0" / "rank-0.pt").exists()


@pytest.mark.parametrize("purpose", ["find_the_clip", "evaluate"])
def test_memory_that_runs_out_on_one_rank_while_parameters_are_gathered_is_an_error_on_all(
    purpose: str, tmp_path: Path
) -> None:
    folder = make_disks(tmp_path)
    with running_nodes(folder, PROGRAM, f"out_of_memory_to_{purpose}", str(folder / "disk")) as nodes:
        codes = [wait(node, WATCHDOG) for node in nodes]

    assert all(codes)
    assert not list(folder.rglob("rank-*.pt")), "a training went on"
    assert "OutOfStepError: rank 0 failed in an exchange" in nodes[0].output
    assert "OutOfStepError: rank 1 failed in an exchange with other ranks" in nodes[1].output
    assert "OutOfMemoryError: CUDA out of memory, on purpose" in nodes[1].output
