"""Shards on remote stores: the same bytes, one upload a shard, its stats last; a broken build goes on."""

import os
import pickle
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from recorded import SMALL, tree

from gazeprep import samples
from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.jobs import BuildError
from gazeprep.shards import ShardFolder
from gazeprep.stores import LocalStore, RemoteStore, folder_appearing_whole, open_store, remove_abandoned
from gazeprep.tasks import Task, build_task, finalize

WIDER = replace(SMALL, maps=replace(SMALL.maps, sigma_deg=2.0))


@pytest.fixture
def config(tables, tmp_path):
    """A build of five inputs in five shards into memory; one is rejected."""
    for image in ("a", "b", "c"):
        tables.image(image)
    tables.image("d", subject="s2", split="test")
    tables.reading("r", "a")
    tables.reading("q", "a")
    source = tables.source()
    (tables.root / "c.png").write_bytes(b"no picture")
    url = f"memory://{tmp_path.name}/shards"
    return BuildConfig(url, Sources(table=source), SMALL, shard_samples=1, executor="inline")


def local(config, tmp_path):
    build(replace(config, out=tmp_path / "local"))
    return tree(tmp_path / "local")


def remote(url):
    """What a store holds for its readers, seen without our own code."""
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    above = f"{root.strip('/')}/"
    names = [name for name in files.find(root) if above in name and "/.build/" not in name]
    return {name.split(above, 1)[1]: files.cat_file(name) for name in names}


def test_a_build_into_memory_has_the_bytes_of_a_local_one(config, tmp_path):
    report = build(config)
    assert remote(config.out) == local(config, tmp_path)
    assert build(config) == replace(report, rebuilt=0)
    assert remote(config.out) == tree(tmp_path / "local")


def test_each_file_is_put_once_and_tells_only_of_what_is_there(config, monkeypatch):
    put = []

    def noting(method, at):
        def noted(self, *given):
            put.append(given[at].split("/shards/", 1)[1])
            return method(self, *given)

        return noted

    monkeypatch.setattr(MemoryFileSystem, "put_file", noting(MemoryFileSystem.put_file, 1))
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", noting(MemoryFileSystem.pipe_file, 0))
    build(config)
    assert len(put) == len(set(put))
    assert put[-3:] == ["rejected.parquet", "index.parquet", "dataset.json"]
    tars = [name for name in put if name.endswith(".tar")]
    assert len(tars) == 4
    for name in tars:
        assert put.index(name) < put.index(f".build/{Path(name).stem}.json")


def test_a_build_that_broke_between_tar_and_stats_goes_on(config, tmp_path, monkeypatch):
    def broken(self, name, data):
        if name == ".build/train-00001.json":
            raise KeyboardInterrupt
        write(self, name, data)

    write = RemoteStore.write
    with monkeypatch.context() as patched:
        patched.setattr(RemoteStore, "write", broken)
        with pytest.raises(KeyboardInterrupt):
            build(config)
    assert open_store(config.out).size("dataset.json") is None
    assert build(config).rebuilt == 4  # of five, of which the first was done
    assert remote(config.out) == local(config, tmp_path)


def test_other_options_take_pictures_from_the_remote_shards(config, tmp_path, monkeypatch):
    build(config)

    def decoded_again(_):
        raise AssertionError("a picture was decoded again")

    with monkeypatch.context() as patched:
        patched.setattr(samples, "read_image", decoded_again)
        assert build(replace(config, sample=WIDER)).rebuilt == 2
    assert remote(config.out) == local(replace(config, sample=WIDER), tmp_path)


def test_larger_shards_leave_no_stale_one(config, tmp_path):
    build(config)
    build(replace(config, shard_samples=4))
    assert remote(config.out) == local(replace(config, shard_samples=4), tmp_path)


def test_tasks_and_finalize_into_memory(config, tmp_path):
    build_task(config, Task(1, 2))
    with pytest.raises(BuildError, match="--task-index 0"):
        finalize(config.out)
    build_task(config, Task(0, 2))
    finalize(config.out)
    assert remote(config.out) == local(config, tmp_path)


def test_a_remote_folder_is_read_by_key(config, tmp_path):
    build(config)
    local(config, tmp_path)
    there, here = ShardFolder(config.out), ShardFolder(tmp_path / "local")
    assert there.keys() == here.keys()
    for key in list(here.index["key"]):
        for role in ("image", "gaze", "maps", "json"):
            assert there.member(key, role) == here.member(key, role)
    assert there.sample(key).record == here.sample(key).record


def test_a_place_with_other_files_is_refused(config):
    files, root = fsspec.core.url_to_fs(config.out)
    files.pipe_file(f"{root}/train/train-00000.tar", b"somebody's")
    with pytest.raises(ValueError, match="files that no build here wrote"):
        build(config)


def test_workers_in_other_processes_are_refused_for_memory(config):
    with pytest.raises(ValueError, match=r"seen by one process.* use --executor inline"):
        build(replace(config, executor="local"))


@pytest.mark.parametrize(
    ("place", "cure"),
    [
        ("https://example.org/shards", "can be read but not written"),
        ("nothing-known://bucket", "Protocol not known"),
        (Path("s3://bucket/shards"), "was a URL before it became a Path; give it as text"),
    ],
)
def test_places_that_cannot_be_written_are_refused(place, cure):
    with pytest.raises(ValueError, match=cure):
        open_store(place, writing=True)


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"gs:// needs .*; run pip install 'gazeprep-cogaze\[remote\]'"):
        open_store("gs://bucket/shards")


def test_what_a_store_raises_becomes_a_message_with_a_cure(config, monkeypatch):
    class Unreachable(Exception):
        """As the classes of botocore and aiohttp: no OSError."""

    def unreachable(*_, **__):
        raise Unreachable("secret host")

    monkeypatch.setattr(MemoryFileSystem, "put_file", unreachable)
    with pytest.raises(BuildError, match=r"Unreachable from the memory:// store.*; finished shards stay") as error:
        build(config)
    assert "secret" not in str(error.value)


def test_a_store_goes_to_workers_as_its_place():
    for place in (Path("here"), "memory://there"):
        assert pickle.loads(pickle.dumps(open_store(place))) == open_store(place)
    assert open_store("file:///a/b") == LocalStore(Path("/a/b"))


# --- names that appear only whole


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=60)
    return process.pid


def test_what_killed_processes_left_of_a_result_is_removed_and_nothing_else(tmp_path, gone):
    host, alive = os.uname().nodename, os.getppid()
    kept = [f".out.{host}.{alive}.tmp", f".out.elsewhere.{gone}.tmp", f".other.{host}.{gone}.tmp", "out.tmp"]
    for name in (f".out.{host}.{gone}.tmp", f".out.{host}.{os.getpid()}.tmp", *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    with folder_appearing_whole(tmp_path / "out") as unfinished:
        (unfinished / "whole").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"out", *kept}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path, gone):
    half, mine = tmp_path / f".r[1].html.{os.uname().nodename}.{gone}.tmp", tmp_path / ".r1.html.tmp"
    half.touch()
    mine.touch()
    remove_abandoned(tmp_path / "r[1].html")
    assert [*tmp_path.iterdir()] == [mine]


# --- S3


@pytest.fixture(scope="module")
def s3():
    """The URL of a bucket on an S3 server of our own."""
    pytest.importorskip("moto", reason="the S3 server moto[server] is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL
    )
    endpoint = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patched:
        for name, value in settings.items():
            patched.setenv(name, value)
        bucket(port, server)
        yield "s3://shards-of-a-test"
    server.terminate()
    server.wait(timeout=10)


def bucket(port, server):
    """Make the bucket as soon as the server answers."""
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None
        assert time.monotonic() < deadline, "the S3 server does not answer"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            break
    fsspec.filesystem("s3").mkdir("shards-of-a-test")


@pytest.mark.slow
def test_two_workers_write_to_s3_what_a_local_build_writes(s3, config_of, tmp_path, shards):
    config = config_of(f"{s3}/whole", workers=2)
    report = build(config)
    assert remote(config.out) == tree(shards)
    assert report.rebuilt == 8
    assert build(config).rebuilt == 0
    folder = ShardFolder(config.out)
    assert folder.sample(folder.keys()[0]).record == ShardFolder(shards).sample(folder.keys()[0]).record


@pytest.mark.slow
def test_two_workers_read_every_source_from_s3(s3, corpus, config_of, tmp_path, shards):
    files, root = fsspec.core.url_to_fs(f"{s3}/corpus")
    files.put(f"{corpus.out}/", f"{root}/", recursive=True)
    names = {"reflacx": "reflacx", "egd": "egd-cxr", "mimic": "mimic-cxr", "mimic_jpg": "mimic-cxr-jpg"}
    sources = Sources(**{name: f"{s3}/corpus/{folder}" for name, folder in names.items()})
    config = config_of(f"{s3}/from-s3", sources, workers=2)
    build(config)
    assert remote(config.out) == tree(shards)
    assert build(config).rebuilt == 0


@pytest.mark.slow
def test_tasks_write_to_s3_and_finalize_finds_the_gap(s3, config_of, shards):
    config = config_of(f"{s3}/tasks", workers=1)
    build_task(config, Task(0, 2))
    with pytest.raises(BuildError, match=r"4 of 8 shards are missing.* --task-index 1, and"):
        finalize(config.out)
    build_task(config, Task(1, 2))
    finalize(config.out)
    assert remote(config.out) == tree(shards)


@pytest.mark.slow
def test_a_bucket_that_is_not_there_stops_the_build_with_a_message(s3, config_of):
    with pytest.raises(BuildError, match="finished shards stay"):
        build(config_of("s3://no-such-bucket-here/shards", workers=1))


@pytest.mark.slow
def test_a_killed_build_into_s3_leaves_whole_shards_and_goes_on(s3, config_of, shards):
    config, whole = config_of(f"{s3}/killed", workers=2, shard_samples=4), tree(shards)
    code = (
        "import pickle, sys\nfrom gazeprep.build import build\n"
        "if __name__ == '__main__': build(pickle.loads(bytes.fromhex(sys.argv[1])))"
    )
    with subprocess.Popen([sys.executable, "-c", code, pickle.dumps(config).hex()]) as running:
        deadline = time.monotonic() + 60
        while not remote(config.out) and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        running.kill()
    left = remote(config.out)
    assert 0 < len(left) < len(whole)
    assert left.items() <= whole.items()
    build(config)
    assert remote(config.out) == whole
