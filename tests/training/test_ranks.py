"""Trainings on two processes: the same maps as on one, the same figures on both, and no error that hangs."""

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from clipcam_lightning import Snapshot, explain, find_clip
from tests.support.modules import FineTuning, Pairs
from tests.support.ranks_program import Normalized, Sharded, TensorParallel, Wrapped, probes
from tests.support.shell import ENVIRONMENT

PROGRAM = Path(__file__).parents[1] / "support/ranks_program.py"
WATCHDOG = 240  # seconds, after which a run that hangs is a failure


def launch(scenario: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a scenario on two processes, as ``torchrun`` does."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*command, str(PROGRAM), scenario, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=WATCHDOG)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{scenario} did not end in {WATCHDOG} seconds:\n{output[-3000:]}")
    return subprocess.CompletedProcess(command, process.returncode, output, "")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each rank saw of a scenario, and its folder; run once."""

    @cache
    def of(scenario: str) -> tuple[list[dict[str, Any]], Path]:
        folder = tmp_path_factory.mktemp(scenario)
        done = launch(scenario, folder)
        assert done.returncode == 0, done.stdout[-4000:]
        return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)], folder

    return of


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["weights"].keys() == b["weights"].keys()
    for name, value in a["weights"].items():
        assert torch.equal(value, b["weights"][name]), name
    assert torch.equal(a["random"], b["random"])


def snapshots(folder: Path) -> list[Snapshot]:
    return [Snapshot.load(file) for file in sorted(folder.rglob("step-*.safetensors"))]


def maps_of(module: nn.Module, weights: dict[str, torch.Tensor], method: str) -> torch.Tensor:
    """The probes' maps by a model with these weights, in this process alone."""
    module.load_state_dict(weights, strict=False)  # buffers that no state has
    clip = find_clip(module)
    prepared = probes().prepare(clip)
    return explain(clip, prepared.images, [[text] for text in prepared.texts], method=method).maps[:, 0]


def test_under_ddp_the_training_is_the_same_with_and_without_evaluations(run: Any) -> None:
    ranks, _ = run("ddp")
    for rank in ranks:
        assert_same(rank["plain"], rank["watched"])


def test_under_ddp_the_ranks_own_different_statistics_and_keep_them(run: Any) -> None:
    """Else nothing would be shown by the test before and the one after."""
    (first, second), _ = run("ddp")
    name = "model.visual.conv1.0.running_mean"
    assert not torch.equal(first["watched"]["weights"][name], second["watched"]["weights"][name])


def test_under_ddp_maps_are_those_of_rank_0_s_model_in_a_single_process(run: Any) -> None:
    ranks, folder = run("ddp")
    *_, last = snapshots(folder / "watched")
    assert last.info.step == 4
    assert_close(last.maps, maps_of(Normalized(), ranks[0]["watched"]["weights"], "gradcam"), atol=1e-5, rtol=1e-4)


def test_probes_are_shared_out_and_figures_are_the_same_on_both_ranks(run: Any) -> None:
    (first, second), _ = run("ddp")
    once = [len(probes()) // 2, -(-len(probes()) // 2)]
    assert [rank["images"][0] for rank in (first, second)] == once
    assert sum(first["images"]) < sum(second["images"])
    assert (first["monitor"], second["monitor"]) == (True, False)
    assert first["watched"]["figures"] == second["watched"]["figures"]
    assert all("clipcam/energy_inside_mask" in figures for figures in first["watched"]["figures"])


def test_probes_of_a_batch_are_those_of_rank_0(run: Any) -> None:
    ranks, folder = run("captured")
    first, second = (rank["captured"] for rank in ranks)
    assert first["figures"] == second["figures"] != []
    taken = snapshots(folder / "captured")
    assert [each.info.step for each in taken] == [0, 2, 4]
    captions = Pairs("tokens", seed=1).captions
    assert taken[0].prompts == tuple(captions[i] for i in (0, 2, 4, 6))  # every other one is of rank 1


@pytest.mark.parametrize("why", ["stopped by a monitor", "stopped by an alarm"])
def test_a_stop_is_a_stop_on_both_ranks(why: str, run: Any) -> None:
    ranks, _ = run("captured")
    assert [rank[why]["step"] for rank in ranks] == [2, 2]


def test_only_rank_0_reads_files(run: Any) -> None:
    ranks, folder = run("captured")
    assert ranks[0]["files of one rank"]["figures"] == ranks[1]["files of one rank"]["figures"] != []
    assert len(snapshots(folder / "c")) == 3


def test_a_evaluation_that_fails_on_one_rank_fails_on_both_and_the_training_goes_on(run: Any) -> None:
    ranks, folder = run("captured")
    for rank in ranks:
        found = rank["failing on one rank"]
        assert found["step"] == 4
        assert found["figures"][-1]["clipcam/drift"] == 1  # nothing was measured
    (told,) = ranks[0]["failing on one rank"]["warnings"]
    assert "rank 1" in told
    assert "a method that fails on this rank" in told
    assert not snapshots(folder / "d")


def test_an_error_of_one_rank_is_an_error_on_both(run: Any) -> None:
    for rank in run("raising")[0]:
        assert "rank 1: RuntimeError: a method that fails on this rank" in rank["in a look"]
        assert "no such probes" in rank["before training"]


@pytest.mark.parametrize(
    ("scenario", "module"), [("sharded", Sharded), ("tensor_parallel", TensorParallel), ("wrapped", Wrapped)]
)
def test_of_a_split_model_the_training_is_the_same_and_the_maps_are_those_of_one_process(
    scenario: str, module: type[FineTuning], run: Any
) -> None:
    ranks, folder = run(scenario)
    for rank in ranks:
        assert_same(rank["plain"], rank["watched"])
    assert ranks[0]["watched"]["figures"] == ranks[1]["watched"]["figures"] != []
    *_, last = snapshots(folder / "watched")
    assert last.info.step == ranks[0]["watched"]["step"] > 0
    expected = maps_of(module(), ranks[0]["watched"]["weights"], last.info.method)
    assert_close(last.maps, expected, atol=1e-5, rtol=1e-3)


def test_fully_shard_does_split_the_model(run: Any) -> None:
    """Else nothing would be shown by the test before."""
    ranks, _ = run("sharded")
    whole = Sharded().model.visual.conv1.weight.shape[0]
    assert [rank["rows"] for rank in ranks] == [whole // 2, whole // 2]


def test_a_split_run_resumes_with_its_baseline_and_history(run: Any) -> None:
    ranks, folder = run("resumed")
    assert ranks[0]["steps"] == [0, 2, 4]
    lines = (folder / "evaluations" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 2, 4]
    assert {json.loads(line)["baseline_step"] for line in lines} == {0}
