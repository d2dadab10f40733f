"""What a user is warned of, and how often."""

import pytest

from clipcam_lightning.monitoring.notices import Notice, Notices, end_sentence


@pytest.fixture
def shown() -> list[str]:
    return []


def test_of_each_kind_the_first_notice_is_shown(shown):
    notices = Notices("Owner", shown.append)
    for kind, step in (("failed", 1), ("failed", 2), ("images", 3)):
        notices.show(Notice(kind, f"something about step {step}"))
    assert shown == ["Owner: something about step 1.", "Owner: something about step 3."]


def test_after_forgetting_a_notice_is_shown_again(shown):
    notices = Notices("Owner", shown.append)
    for _ in range(2):
        notices.show(Notice("failed", "it failed."), "The training goes on.")
        notices.forget()
    assert shown == ["Owner: it failed. The training goes on."] * 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("it failed", "it failed."), ("it failed.", "it failed."), ("use clip=...", "use clip=...")],
)
def test_a_sentence_ends_with_its_own_stop_or_with_one(text, sentence):
    assert end_sentence(text) == sentence
