"""Who may import whom: pipelines -> cogaze -> gazeprep, and gazeprep never imports torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAINING = {"torch", "webdataset", "accelerate", "transformers", "torchvision", "timm"}
COGAZE_MAY_USE = {
    f"gazeprep.{name}" for name in ("schema", "maps", "images", "shards", "transcripts", "fixations", "metrics")
}
# Benchmark datasets come as tables, split lists and, of MIMIC-CXR, as a release that gazeprep reads already.
READERS_MAY_USE = COGAZE_MAY_USE | {
    f"gazeprep.{name}" for name in ("splits", "reports", "sources.csv_table", "sources.mimic_cxr")
}
TABLE_READER = ROOT / "cogaze/evaluate/reports/generated.py"  # of anyone's table
SOURCE_FOLDERS = ("gazeprep/sources", "gazeprep/synthetic")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(str(node.module))
    return found


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", modules("gazeprep"), ids=lambda path: str(path.relative_to(ROOT)))
def test_gazeprep_imports_neither_cogaze_nor_what_trains(path):
    tops = {name.split(".")[0] for name in imports(path)}
    assert not tops & (TRAINING | {"cogaze", "pipelines"})


def test_importing_gazeprep_loads_neither_torch_nor_plotting():
    code = "import sys, gazeprep.cli; print([m for m in ('torch', 'webdataset', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_cogaze_uses_only_the_contract_of_gazeprep():
    for path in modules("cogaze"):
        used = {name for name in imports(path) if name.split(".")[0] == "gazeprep"}
        reader = path.is_relative_to(ROOT / "cogaze/evaluate/datasets") or path == TABLE_READER
        assert used <= (READERS_MAY_USE if reader else COGAZE_MAY_USE), path


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in ("gazeprep", "cogaze")}


def test_losses_import_nothing_of_ours_but_one_another():
    for path in modules("cogaze/losses"):
        assert all(name.startswith("cogaze.losses.") for name in ours(path)), path


def test_metrics_import_nothing_of_ours_but_the_schema():
    for path in [ROOT / "gazeprep/metrics.py", ROOT / "cogaze/evaluate/metrics.py"]:
        if path.exists():
            assert ours(path) <= {"gazeprep.schema"}, path


def test_raw_column_names_stay_in_sources_and_synthetic():
    raw = ("x_position", "X_ORIGINAL", "FPOGX", "timestamp_start_fixation", "begin_time", "bbox_name")
    for path in modules("gazeprep"):
        if not str(path.relative_to(ROOT)).startswith(SOURCE_FOLDERS):
            text = path.read_text(encoding="utf-8")
            assert not [name for name in raw if name in text], path


def test_no_module_is_a_drawer_for_everything():
    names = {path.name for package in ("gazeprep", "cogaze", "pipelines") for path in modules(package)}
    assert not names & {"utils.py", "common.py", "helpers.py", "misc.py"}
