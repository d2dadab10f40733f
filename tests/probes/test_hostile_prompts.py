"""A prompt is data: any text comes back unchanged from every file and is shown as text, never as markup."""

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import tokenizers
import torch
import transformers
from hypothesis import example, given, strategies as st
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning import ClipCamCallback
from clipcam_lightning.analysis.prompt_sensitivity import TEMPLATES, paraphrases
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cli.reports import report_on
from clipcam_lightning.drift.compare import compare
from clipcam_lightning.drift.snapshot import Snapshot, SnapshotInfo
from clipcam_lightning.monitoring.evaluation import Evaluation
from clipcam_lightning.monitoring.history import HistoryEntry, relative_saliency
from clipcam_lightning.probes.probe import Probe
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip
from clipcam_lightning.sinks.drawing import Drawer
from clipcam_lightning.sinks.files import FileSink
from clipcam_lightning.sinks.tensorboard import TensorBoardSink, escape_markup
from clipcam_lightning.sinks.tensorboard_images import TensorBoardImageSink
from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.storage.run_folder import RunFolder
from clipcam_lightning.visualization.report import html_report
from tests.support.hostile import TEXTS, attempt, example_folder, examples, texts, without_test_checks
from tests.support.modules import FineTuning, events, fit
from tests.support.shell import files_in

pytestmark = pytest.mark.slow

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
GREY = torch.full((3, 16, 16), 128, dtype=torch.uint8)
NOT_BLANK = {name: text for name, text in TEXTS.items() if text.strip()}
prompt_lists = st.lists(texts.filter(str.strip), min_size=1, max_size=4)


def visible(text: str) -> str:
    """Replace what a page cannot show, control characters and half surrogate pairs, and join runs of blanks."""
    return " ".join(re.sub(r"[\0-\x1f\x7f-\x9f\ud800-\udfff]", " ", text).split())


def render_in_tensorboard(markdown: str) -> str:
    with without_test_checks():  # a module of TensorBoard gives a deprecation warning
        from tensorboard.plugin_util import markdown_to_safe_html

        page: str = markdown_to_safe_html(markdown)
        return page


class Page(HTMLParser):
    """Parses the tags and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def make_snapshot(prompts: list[str], names: list[str] | None = None) -> Snapshot:
    count = len(prompts)
    return Snapshot(
        maps=torch.rand(count, 2, 3),
        similarity=torch.zeros(count),
        energy_inside_mask=torch.full((count,), torch.nan),
        pointing=torch.full((count,), torch.nan),
        names=tuple(names or ProbeSet((PIXELS, prompt) for prompt in prompts).names),
        prompts=tuple(prompts),
        info=SnapshotInfo(
            "d", 7, 0, "gradcam", "similarity", (1.0,), False, "mean", ("visual",), "f", "float32", {"torch": "2"}
        ),
    )


def make_evaluation(prompts: list[str]) -> Evaluation:
    now = make_snapshot(prompts)
    report = compare(now, now)
    entry = HistoryEntry(
        step=7,
        maps=relative_saliency(now.maps).half(),
        drift=tuple(probe.drift for probe in report.probes),
        flagged=tuple(probe.flagged for probe in report.probes),
        states=now.states,
    )
    return Evaluation(
        pixels=GREY.expand(len(prompts), -1, -1, -1),
        masks=[None] * len(prompts),
        snapshot=now,
        baseline=now,
        report=report,
        history=(entry,),
        digests=[f"{i:064x}" for i in range(len(prompts))],
        metrics={"drift": 0.0},
    )


@contextmanager
def tensorboard(folder: Path, evaluation: Evaluation) -> Iterator[EventAccumulator]:
    """Write an evaluation and yield what TensorBoard reads of it."""
    with SummaryWriter(str(folder)) as writer:
        TensorBoardSink(writer).write(evaluation)
        TensorBoardImageSink(writer, "clipcam", Drawer(32)).write(evaluation)
    yield EventAccumulator(str(folder), {"images": 0, "tensors": 0}).Reload()


@given(prompts=prompt_lists)
@examples(60)
def test_a_probe_set_with_any_prompts_comes_back_from_its_file(prompts: list[str]) -> None:
    probes = ProbeSet((PIXELS, prompt) for prompt in prompts)
    with example_folder() as folder:
        probes.save(folder / "f")
        loaded = ProbeSet(folder / "f")
    assert (loaded.prompts, loaded.names, loaded.digest) == (prompts, probes.names, probes.digest)


@given(
    # Also words that together exceed the length of a name, so that it ends anywhere in a word.
    text=texts.filter(str.strip) | st.lists(st.text("ab.", min_size=1, max_size=9), min_size=12).map(" ".join),
    count=st.integers(2, 12),
)
@examples(100)
def test_names_made_for_a_repeated_prompt_are_unique_and_can_be_given_explicitly(text: str, count: int) -> None:
    probes = ProbeSet((PIXELS, text) for _ in range(count))
    assert len(set(probes.names)) == count
    assert ProbeSet(Probe(PIXELS, text, name) for name in probes.names).names == probes.names


@given(prompts=st.lists(texts.filter(str.strip), min_size=2, max_size=2, unique=True))
@example(prompts=["a \ud83d", "a \ud83e"])
@examples(100)
def test_different_prompts_have_different_digests(prompts: list[str]) -> None:
    first, second = (ProbeSet([(PIXELS, prompt)]).digest for prompt in prompts)
    assert first != second


@given(prompts=prompt_lists)
@examples(60)
def test_a_snapshot_with_any_prompts_comes_back_from_its_file(prompts: list[str]) -> None:
    saved = make_snapshot(prompts, names=prompts)
    with example_folder() as folder:
        saved.save(folder / "f")
        loaded = Snapshot.load(folder / "f")
    assert (loaded.names, loaded.prompts) == (saved.names, saved.prompts)


def make_rust_tokenizer() -> Any:
    vocabulary = {"<unknown>": 0, **{chr(code): code - 31 for code in range(32, 80)}}
    model = tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unknown>")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model),
        model_max_length=12,
        unk_token="<unknown>",
        pad_token="<unknown>",
    )


TOKENIZERS = {
    "words": WordTokenizer(),
    "open_clip": open_clip.SimpleTokenizer(context_length=12),
    "transformers": make_rust_tokenizer(),
}


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@given(prompts=prompt_lists)
@example(prompts=list(NOT_BLANK.values()))
@examples(40)
def test_every_kind_of_tokenizer_accepts_any_prompt(tokenizer: Any, prompts: list[str]) -> None:
    tokens = find_clip(MODEL, tokenizer=tokenizer).tokenize(prompts)
    ids = tokens if isinstance(tokens, torch.Tensor) else tokens["input_ids"]
    assert len(ids) == len(prompts)
    assert ids.shape[1] <= 12


MODEL = build_clip()


@given(prompt=texts)
@examples(100)
def test_any_prompt_that_is_not_blank_is_paraphrased(prompt: str) -> None:
    paraphrased = attempt(lambda: paraphrases(prompt))
    assert (paraphrased is None) == (not prompt.strip())
    assert paraphrased is None or len(paraphrased) == len(TEMPLATES)


@given(prompts=prompt_lists)
@examples(10)
def test_tensorboard_shows_one_image_per_probe_and_prompts_create_no_tags_or_folders(prompts: list[str]) -> None:
    evaluation = make_evaluation(prompts)
    with example_folder() as folder:
        with tensorboard(folder / "run", evaluation) as events_read:
            tags = events_read.Tags()
            metadata = [events_read.SummaryMetadata(f"clipcam_maps/{probe.name}") for probe in evaluation.report.probes]
            (table,) = events_read.Tensors("clipcam/probes/text_summary")
        assert {path.parent for path in files_in(folder)} == {Path("run")}, "a prompt became a path"
    maps = {f"clipcam_maps/{name}" for name in evaluation.snapshot.names}
    assert set(tags["images"]) == maps | {"clipcam_contact_sheet/all_probes"}
    for each, prompt in zip(metadata, prompts, strict=True):
        check_text(each.summary_description, prompt)
    rows = Page(render_in_tensorboard(table.tensor_proto.string_val[0].decode()))
    assert [tag for tag, _ in rows.tags].count("tr") == 1 + len(prompts)


def check_text(markdown: str, prompt: str) -> None:
    """Check that TensorBoard renders one paragraph whose text is the prompt."""
    page = Page(render_in_tensorboard(markdown))
    assert page.tags in ([("p", ())], [])
    assert visible("".join(page.texts)) == visible(prompt)


@given(prompt=texts)
@examples(150)
def test_escaped_markdown_shows_exactly_the_prompt(prompt: str) -> None:
    check_text(escape_markup(prompt), prompt)


@given(prompts=prompt_lists)
@examples(15)
def test_the_history_has_one_line_per_evaluation_and_no_file_leaves_the_folder(prompts: list[str]) -> None:
    evaluation = make_evaluation(prompts)
    with example_folder() as folder:
        for _ in range(2):
            FileSink(RunFolder(as_path(folder / "run"), "id")).write(evaluation)
        lines = (folder / "run" / "history.jsonl").read_bytes().splitlines()
        assert [[probe["prompt"] for probe in json.loads(line)["probes"]] for line in lines] == [prompts] * 2
        names = ("run.json", "history.jsonl", "step-00000007.safetensors")
        assert set(files_in(folder)) == {Path("run") / name for name in names}


@given(prompts=prompt_lists)
@examples(15)
def test_the_report_shows_exactly_the_prompts_and_they_add_no_tags(prompts: list[str]) -> None:
    plain = make_snapshot([f"prompt {i}" for i in range(len(prompts))], [f"name {i}" for i in range(len(prompts))])
    odd = replace(plain, names=tuple(prompts), prompts=tuple(prompts))
    pages = [Page(html_report(each, each, compare(each, each))) for each in (plain, odd)]

    assert pages[0].tags == pages[1].tags
    page_texts = [visible(text) for text in pages[1].texts]
    for prompt in prompts:
        assert visible(re.sub("[\ud800-\udfff]", "?", prompt)) in page_texts


@given(text=texts.filter(str.strip))
@examples(60)
def test_a_table_in_the_terminal_shows_the_name_without_control_characters(text: str) -> None:
    output, odd = io.StringIO(), make_snapshot([text], [text])
    with redirect_stdout(output):
        report_on(odd, odd, compare(odd, odd), json_file=None, html_file=None)
    printed = output.getvalue()
    assert not re.search(r"[\0-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", printed)
    printable = "".join(char for char in text if char.isprintable() and not char.isspace())
    if 0 < len(printable) < 20 and printable.isascii():
        assert printable in re.sub(r"\s", "", printed)


def test_a_training_with_all_hostile_prompts_at_once_logs_them_unchanged(tmp_path: Path) -> None:
    prompts = list(NOT_BLANK.values())
    callback = ClipCamCallback([(PIXELS, prompt) for prompt in prompts], dirpath=tmp_path / "maps", on_error="raise")
    logger = TensorBoardLogger(tmp_path, name="", version="run")

    fit(FineTuning(), tmp_path, callback, max_epochs=1, logger=logger)

    logged = events(tmp_path)
    for prompt, name in zip(prompts, ProbeSet((PIXELS, prompt) for prompt in prompts).names, strict=True):
        check_text(logged.SummaryMetadata(f"clipcam_maps/{name}").summary_description, prompt)
    last = json.loads((tmp_path / "maps" / "history.jsonl").read_text().splitlines()[-1])
    assert [probe["prompt"] for probe in last["probes"]] == prompts
    assert Snapshot.load(tmp_path / "maps" / "step-00000004.safetensors").prompts == tuple(prompts)
    assert {path.parts[0] for path in files_in(tmp_path)} == {"maps", "run"}
