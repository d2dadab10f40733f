"""The prompt that an image is closest to."""

import pytest
import torch

from clipcam_lightning.monitoring import closest_prompts
from clipcam_lightning.monitoring.closest_prompts import find_closest, list_other_prompts


def test_the_closest_prompt_has_the_largest_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closest_prompts, "ROWS", 4)
    embeddings, texts = torch.randn(11, 3, 8), torch.randn(6, 1, 8)
    texts[4] = texts[1]  # of equal prompts the first

    closest = find_closest(embeddings, texts)

    expected = [[max(range(6), key=[float(image @ text[0]) for text in texts].__getitem__) for image in row]
                for row in embeddings]  # fmt: skip
    assert closest.tolist() == expected
    assert 1 in closest
    assert 4 not in closest


def test_a_cosine_that_is_not_finite_is_not_the_largest() -> None:
    texts = torch.eye(3)[:, None].clone()
    texts[1] = torch.nan

    closest = find_closest(torch.tensor([[0.1, 0.9, 0.2], [torch.nan] * 3]), texts)

    assert closest.tolist() == [2, -1], "an image without any finite cosine is closest to none"


def test_other_prompts_of_the_same_image_do_not_count() -> None:
    prompts, images = ["a dog", "a cat", "a dog", "a dog", "a fox"], [b"0", b"0", b"0", b"1", b"2"]

    ignored = list_other_prompts(prompts, images)

    assert ignored == {0: [1], 1: [0, 2], 2: [1]}
    texts = torch.eye(5)[[0, 1, 0, 0, 2], None]
    embeddings = torch.tensor([[0.5, 0.9, 0, 0, 0], [0.9, 0.5, 0, 0, 0], [0.5, 0.9, 0, 0, 0], [0.5, 0.9, 0, 0, 0]])
    assert find_closest(embeddings, texts).tolist() == [1, 0, 1, 1]
    assert find_closest(embeddings, texts, ignored).tolist() == [0, 1, 0, 1]
    texts[1] = texts[0]
    assert find_closest(embeddings, texts, ignored).tolist() == [0, 0, 0, 0], "a prompt with the same embedding counts"
