"""The benchmark for GPUs runs on the CPU, too, and says so where there is no GPU."""

import pytest
import torch

from benchmarks import gpu

pytestmark = pytest.mark.slow


def test_the_quick_run_measures_every_contender(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py", "--quick"])
    monkeypatch.setattr("logging.disable", lambda _level: None)

    gpu.main()

    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    names = [cells[0].strip() for cells in lines]
    for contender in ("plain forward", "auto, float32", "auto, bfloat16", "gradcam, bfloat16", gpu.PEER):
        assert names.count(contender) == len(gpu.QUICK_MODELS)
    assert names.count("float32") == names.count("bfloat16") == 1, "during a training"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py"])

    with pytest.raises(SystemExit) as ended:
        gpu.main()

    assert ended.value.code == gpu.NO_GPU
