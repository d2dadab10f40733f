"""Trainings on two processes: the maps of one process, the same metrics on both ranks, and no error that hangs."""

import json
import signal
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch import nn
from torch.testing import assert_close

from clipcam_lightning import ClipCamMonitor, Snapshot, explain, find_clip
from tests.support.modules import FineTuning, Pairs
from tests.support.ranks_program import Normalized, Sharded, TensorParallel, Wrapped, probes
from tests.support.shell import ENVIRONMENT
from tests.support.suspicion import always_suspicious
from tests.support.warm_python import Program, run_together

pytestmark = pytest.mark.ranks

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests/support/ranks_program.py"
WATCHDOG = 240  # seconds after which a run counts as hanging
CORRUPTION = ("double free", "corrupted ", "free(): ", "malloc(): ")  # of memory, in the words of glibc


def launch(scenario: str, make_folder: Callable[[str], Path]) -> Path:
    """Run a scenario on two ranks, and once more if gloo's threads corrupt the memory of one, which is rare.

    Returns:
        The folder with the results.
    """
    folder = make_folder(scenario)
    done = run_ranks(scenario, folder)
    if any(each.returncode == -signal.SIGABRT and any(word in each.stderr for word in CORRUPTION) for each in done):
        print(f"{scenario} is run again:", *(each.stderr[-2000:] for each in done), sep="\n")
        folder = make_folder(scenario)
        done = run_ranks(scenario, folder)
    assert [each.returncode for each in done] == [0, 0], "\n".join(
        each.stdout[-2000:] + each.stderr[-4000:] for each in done
    )
    return folder


def run_ranks(scenario: str, folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run a scenario on two ranks, with the environment that torchrun gives them."""
    of_both = {
        **ENVIRONMENT,
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(find_free_network_port()),
        "TORCHELASTIC_RUN_ID": "none",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
    }
    environments = [{**of_both, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    programs = [Program(PROGRAM, (scenario, str(folder)), ROOT, env) for env in environments]
    try:
        return run_together(programs, WATCHDOG, depend=True)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"{scenario} did not end in {WATCHDOG} seconds:\n{str(error.stderr)[-3000:]}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that runs a scenario once, and returns the results of both ranks and its folder."""

    @cache
    def run_once(scenario: str) -> tuple[list[dict[str, Any]], Path]:
        folder = launch(scenario, tmp_path_factory.mktemp)
        return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)], folder

    return run_once


def assert_same_training(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["weights"].keys() == b["weights"].keys()
    for name, value in a["weights"].items():
        assert torch.equal(value, b["weights"][name]), name
    assert torch.equal(a["random"], b["random"])


def snapshots_in(folder: Path) -> list[Snapshot]:
    return [Snapshot.load(file) for file in sorted(folder.rglob("step-*.safetensors"))]


def maps_of(module: nn.Module, weights: dict[str, torch.Tensor], method: str) -> torch.Tensor:
    """Explain the probes with a model of these weights, in this process alone."""
    module.load_state_dict(weights, strict=False)  # some buffers are in no state
    clip = find_clip(module)
    prepared = probes().prepare(clip)
    return explain(clip, prepared.images[:], [[text] for text in prepared.texts], method=method).maps[:, 0]


def test_under_ddp_the_training_is_the_same_with_and_without_the_callback(run: Any) -> None:
    ranks, _ = run("ddp")
    for rank in ranks:
        assert_same_training(rank["plain"], rank["monitored"])


def test_under_ddp_the_ranks_keep_their_own_statistics(run: Any) -> None:
    """With equal statistics, the tests before and after this one would prove nothing."""
    (first, second), _ = run("ddp")
    name = "model.visual.conv1.0.running_mean"
    assert not torch.equal(first["monitored"]["weights"][name], second["monitored"]["weights"][name])


def test_under_ddp_the_maps_are_those_of_the_model_of_rank_0_in_a_single_process(run: Any) -> None:
    ranks, folder = run("ddp")
    *_, last = snapshots_in(folder / "monitored")
    assert last.info.step == 4
    assert_close(last.maps, maps_of(Normalized(), ranks[0]["monitored"]["weights"], "gradcam"), atol=1e-5, rtol=1e-4)


def test_each_rank_explains_a_share_of_the_probes_and_both_have_the_same_metrics(run: Any) -> None:
    (first, second), _ = run("ddp")
    shares = [len(probes()) // 2, -(-len(probes()) // 2)]
    assert [rank["images"][0] for rank in (first, second)] == shares
    assert sum(first["images"]) < sum(second["images"])
    assert (first["monitor"], second["monitor"]) == (True, False)
    assert first["monitored"]["metrics"] == second["monitored"]["metrics"]
    assert all("clipcam/energy_inside_mask" in metrics for metrics in first["monitored"]["metrics"])


def test_probes_of_a_batch_are_those_of_rank_0(run: Any) -> None:
    ranks, folder = run("captured")
    first, second = (rank["captured"] for rank in ranks)
    assert first["metrics"] == second["metrics"] != []
    snapshots = snapshots_in(folder / "captured")
    assert [snapshot.info.step for snapshot in snapshots] == [0, 2, 4]
    captions = Pairs("tokens", seed=1).captions
    assert snapshots[0].prompts == tuple(captions[i] for i in (0, 2, 4, 6))  # every other caption is of rank 1


@pytest.mark.parametrize("training", ["stopped by a monitor", "stopped by an alarm"])
def test_a_training_stops_on_both_ranks(training: str, run: Any) -> None:
    ranks, _ = run("captured")
    assert [rank[training]["step"] for rank in ranks] == [2, 2]


def test_only_rank_0_reads_files(run: Any) -> None:
    ranks, folder = run("captured")
    assert ranks[0]["files of one rank"]["metrics"] == ranks[1]["files of one rank"]["metrics"] != []
    assert len(snapshots_in(folder / "c")) == 3


def test_an_evaluation_that_fails_on_one_rank_fails_on_both_and_the_training_goes_on(run: Any) -> None:
    ranks, folder = run("captured")
    for rank in ranks:
        training = rank["failing on one rank"]
        assert training["step"] == 4
        assert training["metrics"][-1]["clipcam/drift"] == 1, "unknown is not unmoved"
    (message,) = ranks[0]["failing on one rank"]["warnings"]
    assert "rank 1" in message
    assert "a method that fails on this rank" in message
    assert not snapshots_in(folder / "d")


def test_an_error_of_one_rank_is_an_error_on_both(run: Any) -> None:
    for rank in run("raising")[0]:
        assert "rank 1: RuntimeError: a method that fails on this rank" in rank["in an evaluation"]
        assert "no such probes" in rank["before training"]


@pytest.mark.parametrize("scenario", ["ddp", "sharded"])
def test_evidence_is_gathered_with_two_ranks(scenario: str, run: Any) -> None:
    _, folder = run(scenario)
    *_, last = snapshots_in(folder / "monitored")
    assert last.transplants_named is not None
    assert last.covered_loss is not None
    assert last.covered_loss.isfinite().any()


def test_the_evidence_of_two_ranks_is_that_of_one_process(run: Any, tmp_path: Path) -> None:
    ranks, folder = run("sharded")
    files = sorted((folder / "monitored").rglob("step-*.safetensors"))
    last, module = Snapshot.load(files[-1]), Sharded()
    module.load_state_dict(ranks[0]["monitored"]["weights"], strict=False)
    with always_suspicious(), ClipCamMonitor(probes(), baseline=files[0], dirpath=tmp_path) as monitor:
        monitor.evaluate(module, step=last.info.step)
        alone = monitor.snapshot

    assert alone is not None
    for name in ("covered_loss", "control_loss", "background_score"):
        assert_close(getattr(last, name), getattr(alone, name), atol=1e-3, rtol=1e-3, equal_nan=True)
    for name in ("transplants_named", "closest"):
        assert torch.equal(getattr(last, name), getattr(alone, name))


@pytest.mark.parametrize(
    ("scenario", "module"), [("sharded", Sharded), ("tensor_parallel", TensorParallel), ("wrapped", Wrapped)]
)
def test_with_a_sharded_model_the_training_is_the_same_and_the_maps_are_those_of_one_process(
    scenario: str, module: type[FineTuning], run: Any
) -> None:
    ranks, folder = run(scenario)
    for rank in ranks:
        assert_same_training(rank["plain"], rank["monitored"])
    assert ranks[0]["monitored"]["metrics"] == ranks[1]["monitored"]["metrics"] != []
    *_, last = snapshots_in(folder / "monitored")
    assert last.info.step == ranks[0]["monitored"]["step"] > 0
    expected = maps_of(module(), ranks[0]["monitored"]["weights"], last.info.method)
    assert_close(last.maps, expected, atol=1e-5, rtol=1e-3)


def test_fully_shard_does_shard_the_model(run: Any) -> None:
    """With a whole model on each rank, the test before this one would prove nothing."""
    ranks, _ = run("sharded")
    whole = Sharded().model.visual.conv1.weight.shape[0]
    assert [rank["rows"] for rank in ranks] == [whole // 2, whole // 2]


def test_a_rank_with_too_little_memory_for_all_parameters_ends_no_training(run: Any) -> None:
    ranks, folder = run("sharded")
    for rank in ranks:
        assert_same_training(rank["plain"], rank["short of memory"])
    (message,) = ranks[0]["short of memory"]["warnings"]
    assert "rank 1: OutOfMemoryError: CUDA out of memory, on purpose" in message
    assert "The training goes on" in message
    assert not snapshots_in(folder / "short of memory")


def test_a_search_that_fails_on_one_rank_ends_the_evaluations_on_both_and_the_training_goes_on(run: Any) -> None:
    ranks, _ = run("captured")
    for rank in ranks:
        assert rank["no clip on one rank"]["step"] == 4
    (message,) = ranks[0]["no clip on one rank"]["warnings"]
    assert "rank 1: RuntimeError: a model that fails on this rank" in message


def test_a_sharded_run_resumes_with_its_baseline_and_history(run: Any) -> None:
    ranks, folder = run("resumed")
    assert ranks[0]["steps"] == [0, 2, 4]
    lines = (folder / "evaluations" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 2, 4]
    assert {json.loads(line)["baseline_step"] for line in lines} == {0}
