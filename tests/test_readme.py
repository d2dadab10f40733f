"""The README is short, and every link leads to a page or a file. The tests of the docs run its code."""

import re

from tests.support.pages import DOCS, PAGES, README, ROOT

TEXT = PAGES[README]
SITE = "https://clipcam-lightning.github.io/clipcam-lightning/"
RAW = "https://raw.githubusercontent.com/clipcam-lightning/clipcam-lightning/main/"


def test_the_readme_can_be_read_in_a_few_minutes() -> None:
    assert 900 <= len(TEXT.split()) <= 1200


def test_the_first_screen_shows_the_tab_the_installation_and_the_three_lines() -> None:
    first = TEXT.partition("\n## ")[0]
    assert re.search(r"!\[[^]]+\]\(\S+\.gif\)", first)
    assert "pip install clipcam-lightning" in first
    assert "Trainer(callbacks=[ClipCamCallback()])" in first
    assert first.index(".gif") < first.index("pip install") < first.index("Trainer(")


def test_links_to_the_docs_lead_to_a_page() -> None:
    links = re.findall(rf"{SITE}([^)\s]*)", TEXT)
    assert len(links) > 5
    for link in links:
        page = link.strip("/")
        assert any((DOCS / name).exists() for name in (f"{page}.md", f"{page}/index.md".strip("/"))), link


def test_the_images_are_in_the_repository() -> None:
    images = re.findall(r"!\[[^]]+\]\(([^)]+)\)", TEXT)
    assert len(images) >= 2
    assert [image for image in images if not (ROOT / image.removeprefix(RAW)).exists()] == []
