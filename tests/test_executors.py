"""Executors: the same bytes from each, jobs of a killed worker are run again, one's own executor is used."""

import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from recorded import SMALL, tree

from gazeprep.build import BuildConfig, build, jobs_of
from gazeprep.cases import Sources, collect
from gazeprep.executors import EXECUTORS, ray_tasks
from gazeprep.jobs import BuildError, run_job
from gazeprep.tasks import Task, build_task, finalize


def backwards(run, jobs, workers):
    """Somebody's own executor."""
    del workers
    for job in reversed(jobs):
        yield run(job)


@pytest.fixture
def config(tables, tmp_path):
    """A build of three inputs in three shards."""
    for image in ("a", "b"):
        tables.image(image)
    tables.reading("r", "a")
    return BuildConfig(tmp_path / "out", Sources(table=tables.source()), SMALL, shard_samples=1, executor="inline")


def test_ones_own_executor_changes_no_byte(config, tmp_path):
    seen = []
    build(config)
    report = build(
        replace(config, out=tmp_path / "own"), lambda job, jobs: seen.append((job.name, jobs)), executor=backwards
    )
    assert seen == [("train-00001", 2), ("train-00000", 2)]
    assert report.rebuilt == 2
    assert tree(tmp_path / "own") == tree(config.out)


def test_tasks_use_ones_own_executor(config, tmp_path):
    build(config)
    other = replace(config, out=tmp_path / "own")
    for index in range(2):
        build_task(other, Task(index, 2), executor=backwards)
    finalize(other.out)
    assert tree(other.out) == tree(config.out)


def test_an_unknown_executor_is_refused(config):
    with pytest.raises(ValueError, match=r"executor is 'spark', must be one of local, inline, ray"):
        replace(config, executor="spark")


def test_without_ray_the_message_says_what_to_install(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"ray is not installed; run pip install 'gazeprep-cogaze\[ray\]'"):
        build(replace(config, executor="ray"))


# --- Ray


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of two workers on this machine."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(Path(__file__).parent))  # for the functions below
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


def dies_once(run, marks, job):
    """Run a job, but the first time kill the process in which it runs."""
    mark = marks / job.name
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return run(job)


def dies(job):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_two_ray_workers_write_what_the_pool_writes(cluster, config_of, tmp_path, shards):
    report = build(config_of(tmp_path / "out", executor="ray"))
    assert report.rebuilt == 8
    assert tree(tmp_path / "out") == tree(shards)
    assert build(config_of(tmp_path / "out", executor="ray")).rebuilt == 0


@pytest.mark.slow
def test_jobs_of_killed_ray_workers_are_run_again(cluster, config_of, tmp_path, shards):
    (tmp_path / "marks").mkdir()

    def killing(run, jobs, workers):
        return EXECUTORS["ray"](partial(dies_once, run, tmp_path / "marks"), jobs, workers)

    build(config_of(tmp_path / "out"), executor=killing)
    assert len(list((tmp_path / "marks").iterdir())) == 8
    assert tree(tmp_path / "out") == tree(shards)
    assert not list((tmp_path / "out").rglob("*.unfinished"))


@pytest.mark.slow
def test_a_ray_worker_that_always_dies_stops_the_build_with_a_message(cluster, config, tmp_path):
    jobs = jobs_of(collect(config.sources), 1)
    with pytest.raises(BuildError, match="a worker process died, often for lack of memory"):
        list(ray_tasks(dies, jobs, 2))


@pytest.mark.slow
def test_what_stops_a_job_comes_back_from_ray_as_it_was(cluster, config, tmp_path):
    jobs = jobs_of(collect(config.sources), 1)
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match="the output path runs through a file"):
        list(ray_tasks(partial(run_job, out=tmp_path / "file" / "out", config=config.sample), jobs, 2))
