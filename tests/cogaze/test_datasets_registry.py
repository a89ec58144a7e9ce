"""Datasets by name and their options."""

import re
import shlex
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from jsonargparse import ArgumentParser
from twins.rsna import write_rsna

from cogaze.evaluate.datasets import READERS, read_dataset, reader_options
from cogaze.evaluate.evaluation import EvaluateConfig


def test_every_reader_takes_a_folder_and_lists():
    assert set(READERS) == {
        "rsna",
        "siim",
        "nih",
        "chexpert",
        "chexpert_5x200",
        "chexpert_8x200",
        "mimic_5x200",
        "tbx11k",
        "shenzhen",
        "covidx",
        "openi",
    }
    assert all("seed" in reader_options(name) for name in READERS)


def test_a_dataset_is_read_by_name_with_its_options(tmp_path):
    write_rsna(tmp_path / "release", tmp_path / "lists", patients=20)
    found = read_dataset("rsna", str(tmp_path / "release"), str(tmp_path / "lists"), boxes="cogaze")
    assert len(found.parts["test"]) == 3


WRONG = {
    "name": (("rsnb", {}), "there is no dataset 'rsnb'; there are rsna, siim"),
    "option": (("rsna", {"sede": 1}), "rsna has no option sede; it has boxes, missing, seed"),
    "value": (("chexpert", {"uncertain": "one"}), "uncertain is 'one', must be one of 'ignore', 'zeros', 'ones'"),
    "type": (("chexpert_5x200", {"per_class": "200"}), "per_class is of type str, must be int"),
    "true": (("chexpert_5x200", {"seed": True}), "seed is of type bool, must be int"),
    "folder": (("siim", {}), "SIIM-ACR: its folder does not exist"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_with_what_there_is(name, tmp_path):
    (dataset, options), message = WRONG[name]
    with pytest.raises(ValueError, match=message) as error:
        read_dataset(dataset, tmp_path / "nowhere", **options)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("dataset", READERS)
def test_an_empty_folder_is_refused_by_every_reader(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"not in the folder|holds no XML|of 0 pictures|holds none of") as error:
        read_dataset(dataset, tmp_path)
    assert str(tmp_path) not in str(error.value)


def test_a_path_may_be_given_as_text(tmp_path):
    with pytest.raises(ValueError, match=r"train\.csv is not in the folder"):
        read_dataset("chexpert_5x200", tmp_path, write=str(tmp_path / "lists"))
    with pytest.raises(ValueError, match=r"train\.csv is not in the folder"):
        read_dataset("chexpert_5x200", tmp_path, write=Path("lists"))


# --- docs/benchmarks.md

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
TABLES = (
    (DOCS / "reproduce.md")
    .read_text(encoding="utf-8")
    .partition("\n## The published tables\n")[2]
    .partition("\n## ")[0]
)
COMMANDS = re.findall(r"^python pipelines/evaluate\.py (.*)$", TABLES, re.MULTILINE)


@pytest.mark.parametrize("dataset", READERS)
def test_the_page_has_every_option_and_its_values(dataset):
    section = re.search(rf"^## {dataset}\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)[1]
    named = set(re.findall(r"`(\w+)`", section))
    for option, kind in reader_options(dataset).items():
        assert option in named, option
        if get_origin(kind) is Literal and option != "missing":
            assert set(get_args(kind)) <= named, option


def test_the_page_has_no_dataset_that_is_not_there():
    assert set(re.findall(r"^\| \[`(\w+)`\]", PAGE, re.MULTILINE)) == set(READERS)


# --- docs/reproduce.md, the published tables


@pytest.fixture(scope="module")
def parser():
    made = ArgumentParser()
    made.add_class_arguments(EvaluateConfig, None, fail_untyped=False)
    return made


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_published_tables_is_understood(command, parser, tmp_path):
    config = EvaluateConfig(**vars(parser.instantiate(parser.parse_args(shlex.split(command)))))
    with pytest.raises(ValueError, match=r"not in the folder|of 0 pictures|holds none of"):
        read_dataset(config.dataset, tmp_path, **config.options)
    assert set(config.evaluators) <= {"zero_shot", "retrieval", "linear_probe", "segmentation", "fine_tuning"}


def test_the_published_tables_have_commands():
    assert len(COMMANDS) == 17
