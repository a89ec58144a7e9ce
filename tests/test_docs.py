"""The documents against the code: every field and reason described, every link alive, every example runs."""

import ast
import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields, is_dataclass
from itertools import chain
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pyarrow.parquet as pq
import pytest
import yaml

from gazeprep.build import BuildConfig
from gazeprep.cli import main
from gazeprep.fixations import Filters
from gazeprep.lint import lint
from gazeprep.schema import PriorContext
from gazeprep.shards import INDEX_SCHEMA, REJECTED_SCHEMA, ShardFolder, sha256_of
from gazeprep.transcripts import Alignment

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs" / "data.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TOP_FOLDERS = ("gazeprep", "cogaze", "pipelines", "configs", "benchmarks", "docs", "tests")

REASON = re.compile(r"[a-z]+(_[a-z]+)+")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLE_FILE = re.compile(r"^`([\w./-]+)`:\n\n```(?:csv|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED_FILE = re.compile(rf"`((?:{'|'.join(TOP_FOLDERS)})/[\w./-]+\.\w+)`")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path, language: str) -> list[str]:
    return [body for named, body in FENCE.findall(text_of(path)) if named == language]


def section(heading: str) -> str:
    """What stands under a heading of docs/data.md, up to the next heading of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}[^\n]*\n(.*?)(?=^#+ |\Z)", text_of(DATA), re.MULTILINE | re.DOTALL)
    assert found, f"docs/data.md has no section {heading!r}"
    return found[1]


def described(heading: str) -> list[str]:
    """The names in backticks in the first column of a section's tables."""
    rows = [line for line in section(heading).splitlines() if line.startswith("|")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def assert_described(heading: str, actual: Any) -> None:
    names = described(heading)
    assert len(names) == len(set(names)), f"a name stands twice under {heading!r}"
    assert set(names) == set(actual), f"docs/data.md, {heading!r}: missing or stale {set(names) ^ set(actual)}"


# --- what a build writes, from the worked example itself


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the worked example of docs/data.md was typed in and run."""
    folder = tmp_path_factory.mktemp("example")
    for name, body in EXAMPLE_FILE.findall(text_of(DATA)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(body, encoding="utf-8")
    pictures, check = blocks(DATA, "python")[:2]
    run_python(pictures, folder)
    command = [sys.executable, "-m", "gazeprep.cli", "build", "--config", "eyes.yaml", "--workers", "1"]
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=wide, capture_output=True, text=True, check=True)
    promised = next(body for body in blocks(DATA, "console") if "gazeprep build --config eyes.yaml" in body)
    assert done.stderr + done.stdout == promised.split("\n", 1)[1]
    run_python(check, folder)
    return folder


def run_python(code: str, folder: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_json_key_is_described(example):
    folder = ShardFolder(example / "out/eyes")
    for key in folder.index["key"]:
        assert_described("The json", folder.sample(key).record)


def test_every_field_of_an_earlier_study_is_described():
    assert_described("Earlier studies", [one.name for one in fields(PriorContext)])


def test_every_npz_column_is_described(example):
    folder = ShardFolder(example / "out/eyes")
    for key in folder.index["key"]:
        assert_described("The npz", folder.sample(key).gaze)


def test_every_index_and_rejected_column_is_described(example):
    assert_described("index.parquet", INDEX_SCHEMA.names)
    assert_described("rejected.parquet", REJECTED_SCHEMA.names)
    assert pq.read_schema(example / "out/eyes/index.parquet").names == INDEX_SCHEMA.names


def test_every_field_of_the_manifest_is_described(example):
    manifest = json.loads(text_of(example / "out/eyes/dataset.json"))
    assert_described("dataset.json", manifest)
    parts = {"counts": manifest["counts"], "shards": manifest["shards"][0], "config": manifest["config"]}
    for name, body in parts.items():
        row = next(line for line in section("dataset.json").splitlines() if line.startswith(f"| `{name}`"))
        assert set(re.findall(r"`(\w+)`", row.split("|")[2])) == set(body), name
    assert manifest["shards"][0]["sha256"] == sha256_of(example / "out/eyes" / manifest["shards"][0]["name"])


@pytest.mark.slow  # torch and datasets are imported
def test_every_python_example_of_the_data_page_runs_in_order(example):
    run_python("\n".join(blocks(DATA, "python")), example)


def test_the_listing_of_the_tar_is_what_tar_prints(example):
    listing = next(body for body in blocks(DATA, "console") if "tar tf" in body)
    command, promised = listing.removeprefix("$ ").split("\n", 1)
    done = subprocess.run(command.split(), cwd=example, capture_output=True, text=True, check=True)
    assert done.stdout == promised


def test_lint_says_of_the_example_what_the_page_says(example):
    promised = next(body for body in blocks(DATA, "console") if "gazeprep lint" in body).split("\n", 1)[1]
    assert f"nothing wrong: {lint(example / 'out/eyes', workers=1).read}\n" == promised


def test_select_chooses_of_the_example_what_the_page_says(example, tmp_path, monkeypatch, capsys):
    command, promised = next(body for body in blocks(DATA, "console") if "gazeprep select" in body).split("\n", 1)
    monkeypatch.chdir(example)
    assert main([*shlex.split(command.removeprefix("$ gazeprep "))[:-1], str(tmp_path / "chosen")]) == 0
    assert capsys.readouterr().out == promised


def test_every_kind_of_problem_is_described():
    kinds = set()
    for name in ("checks", "lint"):
        for node in ast.walk(ast.parse(text_of(ROOT / f"gazeprep/{name}.py"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("Problem", "attempt")
            ):
                kinds |= strings(node.args[0])
    assert "split_leak" in kinds, "the scan has gone blind"
    assert_described("Checking shards", kinds)


# --- what the code defines


def config_fields(config: type, above: str = "") -> list[str]:
    """Dotted names of all fields that hold a value, through nested and optional dataclasses."""
    names = []
    hints = get_type_hints(config)
    for one in fields(config):
        nested = [kind for kind in (hints[one.name], *get_args(hints[one.name])) if is_dataclass(kind)]
        names += config_fields(nested[0], f"{above}{one.name}.") if nested else [f"{above}{one.name}"]
    return names


def test_every_config_field_is_described():
    assert_described("Configuration", config_fields(BuildConfig))


def test_every_alignment_value_and_filter_is_described():
    rules = section("Alignment rules")
    values = chain.from_iterable(get_args(hint) for hint in get_type_hints(Alignment).values())
    assert not [value for value in values if isinstance(value, str) and f"`{value}`" not in rules]
    assert not [one.name for one in fields(Filters) if f"`{one.name}`" not in section("Filters")]


def reasons_in(path: Path) -> set[str]:
    """Reason codes in a module: first arguments of what raises InputError, and what reject reasons are made of."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text_of(path))):
        if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Name):
            if node.func.id in ("InputError", "_rejecting", "_bad_cell"):
                found |= strings(node.args[0])
        elif isinstance(node, ast.keyword) and node.arg == "reject":
            found |= strings(node.value)
        elif isinstance(node, ast.FunctionDef) and node.name in ("_reject_reason", "_why_not"):
            found |= {text for one in ast.walk(node) if isinstance(one, ast.Return) for text in strings(one.value)}
    return {text for text in found if REASON.fullmatch(text)}


def strings(node: ast.AST | None) -> set[str]:
    """String constants of an expression, but not those that index a row of a table."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if node is None or isinstance(node, ast.Subscript):
        return set()
    return set().union(*(strings(child) for child in ast.iter_child_nodes(node)))


def test_every_reason_is_described_with_its_cure():
    found = set().union(*(reasons_in(path) for path in (ROOT / "gazeprep").rglob("*.py")))
    known = {"eye_tracking_discarded", "image_missing", "image_not_listed", "view_not_wanted", "bad_id"}
    assert known <= found, "the scan has gone blind"
    assert_described("Reject reasons", found)
    rows = [line.split("|") for line in section("Reject reasons").splitlines() if line.startswith("| `")]
    assert all(len(row) == 6 and all(cell.strip() for cell in row[1:-1]) for row in rows)


# --- the documents themselves


def anchors(path: Path) -> set[str]:
    """The anchors that a Markdown viewer gives the headings of a document."""
    prose = FENCE.sub("", text_of(path))
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_named_files_exist(path):
    prose = FENCE.sub("", text_of(path))
    for target in LINK.findall(prose):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        aim = (path.parent / file).resolve() if file else path
        assert aim.exists(), f"{path.name} links to {target}"
        if anchor and aim.suffix == ".md":
            assert anchor in anchors(aim), f"{path.name} links to {target}"
    assert not [name for name in NAMED_FILE.findall(prose) if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_code_blocks_are_well_formed(path):
    for body in blocks(path, "python"):
        compile(body, path.name, "exec")
    for body in blocks(path, "yaml"):
        assert isinstance(yaml.safe_load(body), dict)
    for body in blocks(path, "csv"):
        rows = list(csv.reader(io.StringIO(body)))
        assert {len(row) for row in rows} == {len(rows[0])}


def test_the_tree_in_contributing_is_the_tree():
    tree = blocks(ROOT / "CONTRIBUTING.md", "text")[0]
    above, named = [""], set()
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        path = f"{above[depth]}{name}"
        if name.endswith("/"):
            above[depth + 1 :] = [path]
        elif name.endswith(".py") and not path.startswith("cogaze"):
            named.add(path)
    packages = [ROOT / "gazeprep", ROOT / "gazeprep/sources", ROOT / "pipelines", ROOT / "benchmarks"]
    actual = {str(file.relative_to(ROOT)) for package in packages for file in package.glob("*.py")}
    assert named == {name for name in actual if not name.endswith("__init__.py")}


def test_the_changelog_and_the_citation_name_the_version():
    version = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["version"]
    assert f"## [{version}]" in text_of(ROOT / "CHANGELOG.md")
    citation = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert (citation["version"], citation["license"]) == (version, "Apache-2.0")
    assert all(citation[name] for name in ("cff-version", "message", "title", "authors"))
    assert "Apache License" in text_of(ROOT / "LICENSE")
