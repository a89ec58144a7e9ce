"""Builds in several tasks: the same bytes as one build, no gap goes unseen, tasks that disagree are refused."""

import errno
import fcntl
import os
from dataclasses import replace

import pytest
from recorded import SMALL, tree

from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.cli import main
from gazeprep.jobs import BuildError
from gazeprep.shards import FolderLock, ShardFolder
from gazeprep.tasks import Task, TaskReport, build_task, finalize

WIDER = replace(SMALL, maps=replace(SMALL.maps, sigma_deg=2.0))

pytestmark = pytest.mark.usefixtures("inline")


@pytest.fixture
def config(tables, tmp_path):
    """A build of six inputs in six shards; one is rejected, so that its shard has no tar."""
    for image in ("a", "b", "c", "d"):
        tables.image(image)
    tables.image("e", subject="s2", split="test")
    tables.reading("r", "a")
    tables.reading("q", "a")
    source = tables.source()
    (tables.root / "d.png").write_bytes(b"no picture")
    return BuildConfig(tmp_path / "out", Sources(table=source), SMALL, shard_samples=1)


def run_tasks(config, count, indexes=None):
    return [build_task(config, Task(index, count)) for index in indexes or range(count)]


def whole_build(config, tmp_path):
    build(replace(config, out=tmp_path / "whole"))
    return tree(tmp_path / "whole")


@pytest.mark.parametrize(("count", "order"), [(1, [0]), (2, [1, 0]), (3, [2, 0, 1]), (9, range(9))])
def test_any_number_of_tasks_gives_the_bytes_of_one_build(config, tmp_path, count, order):
    reports = run_tasks(config, count, order)
    assert not {"index.parquet", "rejected.parquet", "dataset.json"} & {path.name for path in config.out.iterdir()}
    report = finalize(config.out)
    assert tree(config.out) == whole_build(config, tmp_path)
    assert sum(one.rebuilt for one in reports) == sum(one.shards for one in reports) == 6
    assert (report.inputs, report.samples, report.rejected, report.shards) == (6, 5, 1, 5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_tasks_over_every_source_give_the_bytes_of_one_build(config_of, tmp_path, shards, count):
    run_tasks(config_of(tmp_path / "out"), count)
    finalize(tmp_path / "out")
    assert tree(tmp_path / "out") == tree(shards)


def test_each_task_does_the_shards_with_its_remainder(config):
    assert build_task(config, Task(1, 3)) == TaskReport(2, 6, 2)
    assert {path.stem for path in (config.out / ".build").glob("*-0*.json")} == {"train-00001", "train-00004"}


def test_a_missing_task_is_named_with_its_shards(config, tmp_path):
    run_tasks(config, 3, [0, 2])
    missing = (
        r"2 of 6 shards are missing \(train-00001, train-00004\); run again with --task-count 3 and the other options "
        "as before, --task-index 1, and finalize after that"
    )
    with pytest.raises(BuildError, match=missing):
        finalize(config.out)
    assert not (config.out / "dataset.json").exists()
    run_tasks(config, 3, [1])
    finalize(config.out)
    assert tree(config.out) == whole_build(config, tmp_path)


@pytest.mark.parametrize("lost", ["test/test-00000.tar", ".build/test-00000.json"])
def test_a_shard_that_went_missing_is_found(config, lost):
    run_tasks(config, 2)
    (config.out / lost).unlink()
    with pytest.raises(BuildError, match=r"1 of 6 shards are missing \(test-00000\).* --task-index 1, and"):
        finalize(config.out)


def test_a_task_with_other_options_or_another_count_is_refused(config, tables):
    run_tasks(config, 3, [0])
    with pytest.raises(ValueError, match=r"started with other options.*\(they differ in config, shards\)"):
        build_task(replace(config, sample=WIDER), Task(1, 3))
    with pytest.raises(ValueError, match="task-count is 2, another task of this build was started with 3; use that"):
        build_task(config, Task(1, 2))
    tables.image("f")
    tables.source()
    with pytest.raises(ValueError, match=r"differ in .*inputs.*shards\); start all tasks alike, or to begin"):
        build_task(config, Task(1, 3))


def test_shards_of_another_config_are_not_merged(config):
    """As where two first tasks wrote their plans in the same moment."""
    run_tasks(config, 2, [0])
    written = (config.out / ".build/plan.json").read_bytes()
    (config.out / ".build/plan.json").unlink()
    run_tasks(replace(config, sample=replace(SMALL, maps=replace(SMALL.maps, grid=(8, 8)))), 2, [1])
    (config.out / ".build/plan.json").write_bytes(written)
    with pytest.raises(BuildError, match=r"3 of 6 shards are made with other options.* --task-index 1, and"):
        finalize(config.out)


def test_a_finished_build_goes_on_with_other_options(config, tmp_path):
    run_tasks(config, 2)
    finalize(config.out)
    changed = replace(config, sample=WIDER, shard_samples=2)
    run_tasks(changed, 2)
    assert not (config.out / "dataset.json").exists()
    finalize(config.out)
    assert tree(config.out) == whole_build(changed, tmp_path)


def test_a_build_of_everything_takes_over_what_tasks_began(config, tmp_path):
    run_tasks(config, 2, [0])
    assert build(config).rebuilt == 3
    assert tree(config.out) == whole_build(config, tmp_path)
    with pytest.raises(ValueError, match="finished already"):
        finalize(config.out)


def test_what_a_killed_task_left_is_gone_after_finalize(config, tmp_path):
    run_tasks(config, 2)
    (config.out / ".build/train-00000.host.1.unfinished").write_bytes(b"half")
    (config.out / "train/train-00099.tar").write_bytes(b"of an earlier plan")
    finalize(config.out)
    assert tree(config.out) == whole_build(config, tmp_path)
    assert not list(config.out.rglob("*.unfinished"))


def test_finalize_waits_for_tasks_and_tasks_for_builds(config):
    run_tasks(config, 2, [0])
    lock = config.out / ".build/lock"
    with FolderLock(lock, shared=True):
        run_tasks(config, 2, [1])  # beside another task
        with pytest.raises(ValueError, match="another build is writing"):
            finalize(config.out)
    with FolderLock(lock), pytest.raises(ValueError, match="another build is writing"):
        run_tasks(config, 2, [1])
    with FolderLock(config.out / ".build/task-1.lock"), pytest.raises(ValueError, match="another build"):
        run_tasks(config, 2, [1])


def test_a_file_system_without_locks_is_used_without_them(config, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    run_tasks(config, 1)
    assert finalize(config.out).samples == 5


@pytest.mark.parametrize(
    ("index", "count", "text"), [(0, 0, "task-count is 0"), (3, 3, "must be 0 to 2"), (-1, 3, "task-index is -1")]
)
def test_impossible_tasks_are_refused(index, count, text):
    with pytest.raises(ValueError, match=text):
        Task(index, count)


def test_a_folder_without_tasks_has_nothing_to_finalize(tmp_path):
    with pytest.raises(ValueError, match="no task has written into this folder"):
        finalize(tmp_path)


def test_the_command_line(tables, tmp_path, capsys):
    tables.image("a")
    tables.image("b")
    tables.source()
    command = ["build", "--out", f"{tmp_path}/out", "--shard_samples", "1", "--executor", "inline"]
    command += ["--sources.table.images", f"{tables.root}/images.csv"]
    assert main([*command, "--task-index", "0"]) == 1
    assert "go together" in capsys.readouterr().err
    assert main([*command, "--task-index", "0", "--task-count", "2"]) == 0
    assert "task 0 of 2: 1 of 2 shards, 1 of them built now; run gazeprep finalize" in capsys.readouterr().out
    assert main(["finalize", f"{tmp_path}/out"]) == 1
    assert "--task-index 1" in capsys.readouterr().err
    assert main([*command, "--task_index", "1", "--task_count", "2"]) == 0
    capsys.readouterr()
    assert main(["finalize", f"{tmp_path}/out"]) == 0
    assert "\n2 shards\ninputs 2 = samples 2 + rejected 0" in capsys.readouterr().out
    assert len(ShardFolder(tmp_path / "out")) == 2
