"""Output disks that are full or read-only: nothing finished is lost, nothing half-way keeps a name, and it is said."""

from dataclasses import replace

import pytest
from attacks import finals, halves
from disks import Disk
from recorded import SMALL

from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.cli import main
from gazeprep.jobs import BuildError
from gazeprep.shards import ShardFolder
from gazeprep.tasks import Task, build_task, finalize

FULL = "the disk of the output folder is full: free space; finished shards stay, run the same command to go on"
TABLES = ("rejected.parquet", "index.parquet", "dataset.json")


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path / "disk")
    yield made
    made.remove()


@pytest.fixture
def config(tables, disk, inline):
    """A build of five inputs, of which one is rejected, in three shards on the disk."""
    for image in ("a", "b", "c", "d"):
        tables.image(image)
    tables.image("e", subject="s2", split="test")
    tables.reading("r", "a")
    source = tables.source()
    (tables.root / "d.png").write_bytes(b"no picture")
    return BuildConfig(disk.root / "out", Sources(table=source), SMALL, shard_samples=2)


def whole_build(config, folder):
    build(replace(config, out=folder / "elsewhere"))
    return finals(folder / "elsewhere")


def test_a_disk_that_is_full_at_any_page_loses_nothing(config, disk, tmp_path):
    whole, found = whole_build(config, tmp_path), []
    for pages in range(3, 200):
        disk.resize(pages)
        try:
            build(config)
        except BuildError as error:
            assert str(error) == FULL  # noqa: PT017 - the loop ends where there is none
        found.append(finals(config.out))
        assert found[-1].items() <= whole.items()
        assert not halves(config.out)
        if found[-1] == whole:
            break
    assert found[-1] == whole
    places = [sum(name in one for name in TABLES) for one in found]
    assert places == sorted(places)
    assert {*places} == {0, 1, 2, 3}  # it was full at each of the tables, and before
    tars = [sum(name.endswith(".tar") for name in one) for one in found]
    assert tars == sorted(tars)
    assert {*tars} == {0, 1, 2, 3}


def test_a_disk_that_fills_up_while_a_build_is_finalized_loses_nothing(config, disk, tmp_path):
    whole = whole_build(config, tmp_path)
    for index in range(2):
        build_task(config, Task(index, 2))
    disk.leave(0)
    with pytest.raises(BuildError, match=FULL):
        finalize(config.out)
    assert not {*TABLES} & finals(config.out).keys()
    disk.thaw()
    finalize(config.out)
    assert finals(config.out) == whole


WRITERS = {
    "merge": "merge {with} {without} --copy --out {disk}/out",
    "select": "select {shards} --query has_gaze --out {disk}/out",
    **{
        f"export {name}": f"export {{shards}} --format {name} --out {{disk}}/out"
        for name in ("npz", "png16", "fiftyone", "coco", "cogaze", "egma")
    },
    "report": "report {shards} --out {disk}/out",
    "preview": "preview {shards} --samples 2 --out {disk}/out",
}


@pytest.fixture(scope="module")
def folders(shards, tmp_path_factory):
    """A finished build, and two folders that have its samples between them."""
    home = tmp_path_factory.mktemp("halves")
    for name, query in (("with", "has_gaze"), ("without", "not has_gaze")):
        assert main(["select", str(shards), f"--query={query}", f"--out={home / name}"]) == 0
    return {"shards": str(shards), "with": str(home / "with"), "without": str(home / "without")}


def run(name, folders, disk):
    return main([part.format(**folders, disk=disk) for part in WRITERS[name].split()])


QUICK = ("merge", "select", "export npz")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WRITERS]


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_stops_every_command_and_leaves_nothing_half_way(name, folders, disk, capsys):
    for pages in (1, 3, 8) if name in QUICK else (1,):
        disk.leave(pages)
        assert run(name, folders, disk.root) == 1
        said = capsys.readouterr()
        assert said.err.startswith(f"gazeprep {name.split()[0]}: a file or folder cannot be used (No space left on")
        assert "Traceback" not in said.err
        assert not [*disk.root.iterdir()]


@pytest.mark.parametrize("name", NAMES)
def test_a_read_only_disk_stops_every_command(name, folders, disk, capsys):
    disk.freeze()
    assert run(name, folders, disk.root) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"gazeprep {name.split()[0]}: a file or folder cannot be used (Read-only file system)")
    assert "Traceback" not in said


def test_a_finished_build_on_a_read_only_disk_is_read_and_kept(config, disk, capsys):
    build(config)
    whole = finals(config.out)
    disk.freeze()
    with pytest.raises(BuildError, match="the output folder is read-only: choose another --out"):
        build(config)
    with pytest.raises(BuildError, match="the output folder is read-only: choose another --out"):
        build_task(config, Task(0, 1))
    with pytest.raises(BuildError, match="the output folder is read-only: choose another --out"):
        build(replace(config, out=disk.root / "new"))
    assert finals(config.out) == whole
    assert len(ShardFolder(config.out)) == 4
    assert main(["lint", str(config.out), "--workers=1"]) == 0
    disk.thaw()
    assert build(config).rebuilt == 0
    assert finals(config.out) == whole
