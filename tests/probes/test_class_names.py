"""The names of classes are found on modules, their settings and their datasets, or not at all."""

from types import SimpleNamespace
from typing import Any

import datasets
import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split
from transformers import CLIPConfig, ViTConfig

from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.batch import find_images_and_prompts
from clipcam_lightning.probes.class_names import ClassNames, find_class_names
from clipcam_lightning.training.support import list_owners

NAMES = ["cat", "dog"]
PROMPTS = ["a photo of a cat", "a photo of a dog"]


class Named(TensorDataset):
    """A dataset whose classes have names."""

    def __init__(self, classes: ClassNames = NAMES) -> None:
        super().__init__(torch.arange(4))
        self.classes = classes


class Wrapper:
    """A dataset around another."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset


class Holder(Dataset[Any]):
    """A dataset that reads from others, under names of its own."""

    def __init__(self, **datasets: Any) -> None:
        vars(self).update(datasets)


def of_hugging_face(**labels: Any) -> datasets.Dataset:
    """Make a dataset of Hugging Face with columns of labels."""
    features = {name: datasets.ClassLabel(names=names) for name, names in labels.items()}
    return datasets.Dataset.from_dict({name: [0, 1] for name in features}, datasets.Features(features))


class Failing(Named):
    """A dataset with properties that need more than there is."""

    @property
    def class_names(self) -> ClassNames:
        raise RuntimeError("call setup first")


WRAPPED = {
    "subset": Subset(Named(), [0]),
    "random split": random_split(Named(), [1, 3])[0],
    "wrappers": Wrapper(Wrapper(Named())),
    "concatenated": ConcatDataset([Named(), Subset(Named(), [0])]),
    "concatenated with a nameless one": ConcatDataset([TensorDataset(torch.arange(4)), Named()]),
    "loader": DataLoader(Subset(Named(), [0])),
    "failing property": Failing(),
    "under another name": Holder(samples=Holder(images=Named())),
    "Hugging Face": of_hugging_face(label=NAMES).with_format("torch"),
    "Hugging Face, splits": SimpleNamespace(dataset=of_hugging_face(label=NAMES).train_test_split(0.5)),
    "Hugging Face, in a dataset of the user": DataLoader(Holder(hf=of_hugging_face(label=NAMES))),
}


@pytest.mark.parametrize("owner", WRAPPED.values(), ids=WRAPPED)
def test_classes_of_a_wrapped_dataset_are_found(owner: Any) -> None:
    assert find_class_names([owner]) == NAMES


def test_concatenated_datasets_of_other_classes_have_no_names() -> None:
    assert find_class_names([ConcatDataset([Named(), Named(["owl", "fox"])])]) is None


def test_several_labels_of_a_dataset_are_no_names() -> None:
    assert find_class_names([of_hugging_face(coarse=NAMES, fine=["lynx", "wolf"])]) is None


def test_a_datamodule_may_validate_with_other_classes() -> None:
    assert find_class_names([SimpleNamespace(val_set=Named(["owl", "fox"])), Subset(Named(), [0])]) == NAMES


def test_a_dataset_that_holds_itself_has_no_names() -> None:
    wrapper = Wrapper(None)
    wrapper.dataset = wrapper
    assert find_class_names([wrapper]) is None


def test_the_module_takes_precedence_over_the_dataset() -> None:
    assert find_class_names([SimpleNamespace(classes=["owl", "fox"]), None, Named()]) == ["owl", "fox"]


def test_class_names_among_hyperparameters_are_found() -> None:
    class Module(pl.LightningModule):
        def __init__(self, class_names: ClassNames) -> None:
            super().__init__()
            self.save_hyperparameters()

    assert find_class_names([Module(NAMES)]) == NAMES


def module_with(config: Any) -> nn.Module:
    module, part = nn.Module(), nn.Module()
    part.config = config
    module.net = part
    return module


def test_labels_of_the_configuration_of_a_clip_are_names() -> None:
    named = dict(enumerate(NAMES))
    assert find_class_names([module_with(CLIPConfig(id2label=named))]) == named
    assert find_class_names([module_with(CLIPConfig())]) is None, "LABEL_0 is no name"
    assert find_class_names([module_with(ViTConfig(id2label=named))]) is None, "perhaps the classes of a backbone"


@pytest.mark.parametrize("names", [{"id2label": {"0": "cat", "1": "dog"}}, {"class_to_idx": {"cat": 0, "dog": 1}}])
def test_names_are_found_by_number(names: dict[str, Any]) -> None:
    assert find_class_names([SimpleNamespace(**names)]) == {0: "cat", 1: "dog"}


def test_numbers_of_classes_that_are_no_mapping_are_no_names() -> None:
    assert find_class_names([SimpleNamespace(class_to_idx=torch.arange(3), label2id={"cat": 0, "dog": 1})]) == {
        0: "cat",
        1: "dog",
    }


def test_templates_are_no_names_of_classes() -> None:
    owner = SimpleNamespace(prompts=("a photo of a {}", "a drawing of a {}"), class_names=("cat", "dog"))
    assert find_class_names([owner]) == ("cat", "dog")


@pytest.mark.parametrize("other", [{"class_names": NAMES}, {"num_classes": 2}])
def test_prompts_take_precedence_over_names_if_they_are_as_many_as_the_classes(other: dict[str, Any]) -> None:
    several = [template.format(name) for name in NAMES for template in ("a photo of a {}", "a {}", "a big {}")]
    assert find_class_names([SimpleNamespace(prompts=PROMPTS, **other)]) == PROMPTS
    assert find_class_names([SimpleNamespace(prompts=several, **other)]) == other.get("class_names")
    assert find_class_names([SimpleNamespace(prompts=several), Named()]) == NAMES
    assert find_class_names([SimpleNamespace(prompts=PROMPTS)]) == PROMPTS


@pytest.mark.parametrize("several", [list, lambda loaders: dict(enumerate(loaders))])
def test_names_are_looked_for_in_all_loaders_of_a_training(several: Any) -> None:
    loaders = several([DataLoader(TensorDataset(torch.arange(4))), DataLoader(Subset(Named(), [0]))])
    trainer = SimpleNamespace(lightning_module=nn.Linear(1, 1), train_dataloader=loaders)
    assert find_class_names(list_owners(trainer)) == NAMES


BATCH = torch.rand(2, 3, 8, 8), torch.tensor([1, 0])
CODES = [["n01440764", "n01443537"], ["0", "1"], {0: "class_0", 1: "class_1"}, ["CLS1", "label-2"], ["A", "B"]]


@pytest.mark.parametrize("codes", CODES)
def test_names_without_a_word_are_refused_unless_they_are_given(codes: ClassNames) -> None:
    first, second = codes[0], codes[1]
    with pytest.raises(ProbeError, match=rf"called '{first}', '{second}', .*name them with prompts=\[...\]"):
        find_images_and_prompts(BATCH, (8, 8), names=codes, are_names_given=False)
    assert find_images_and_prompts(BATCH, (8, 8), names=codes).prompts == [second, first]


def test_texts_are_taken_instead_of_names_without_a_word() -> None:
    batch = (*BATCH, ["a cat", "a dog"])
    assert find_images_and_prompts(batch, (8, 8), names=["0", "1"], are_names_given=False).prompts == ["a cat", "a dog"]


@pytest.mark.parametrize("names", [["737-300", "Boeing 717"], ["n0 tench", "n1"], ["猫", "犬"], ["class", "ox2"]])
def test_names_of_which_one_holds_a_word_are_used(names: ClassNames) -> None:
    found = find_images_and_prompts(BATCH, (8, 8), names=names, are_names_given=False)
    assert found.prompts == [names[1], names[0]]
