"""Sources on remote stores: the same shards as from a local copy, names from one listing, errors as of local files."""

import io
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
from recorded import SMALL, sources_of, tree

from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.remote_paths import RemotePath, located, source_folder
from gazeprep.schema import InputError
from gazeprep.sources import load_fixations
from gazeprep.sources.csv_table import read_table
from gazeprep.sources.table import TableSource

pytestmark = pytest.mark.usefixtures("inline")


@pytest.fixture
def away(tmp_path):
    """A folder in memory with a few files."""
    files = fsspec.filesystem("memory")
    root = f"/{tmp_path.name}/release"
    for name in ("files/p10/p100/s5.txt", "files/p10/p100/s5/a.dcm", "list-2.1.csv", "list-2.0.csv.gz"):
        files.pipe_file(f"{root}/{name}", name.encode())
    return f"memory:/{root}"


def uploaded(folder, url):
    """Copy a local folder to a remote one."""
    files, root = fsspec.core.url_to_fs(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files.pipe_file(f"{root}/{path.relative_to(folder)}", path.read_bytes())
    return url


def test_every_source_from_memory_gives_the_shards_of_local_files(corpus, config_of, tmp_path, shards):
    url = uploaded(corpus.out, f"memory://{tmp_path.name}/corpus")
    names = {"reflacx": "reflacx", "egd": "egd-cxr", "mimic": "mimic-cxr", "mimic_jpg": "mimic-cxr-jpg"}
    config = config_of(tmp_path / "out", Sources(**{name: f"{url}/{folder}" for name, folder in names.items()}))
    build(config)
    assert tree(tmp_path / "out") == tree(shards)


def table_source(tables, url):
    """One image with gaze, as a table below a URL."""
    if not tables.images:
        tables.image("a")
        tables.reading("r", "a")
        tables.source()
    uploaded(tables.root, url)
    return TableSource(f"{url}/images.csv", f"{url}/fixations.csv", f"{url}/words.csv")


def test_a_changed_remote_file_builds_its_shard_again(tables, tmp_path):
    url = f"memory://{tmp_path.name}/tables"
    config = BuildConfig(tmp_path / "out", Sources(table=table_source(tables, url)), SMALL)
    assert build(config).rebuilt == 1
    assert build(config).rebuilt == 0
    (tables.root / "a.png").write_bytes((tables.root / "a.png").read_bytes() + b"x")
    assert build(replace(config, sources=Sources(table=table_source(tables, url)))).rebuilt == 1


def test_a_url_and_what_pathlib_makes_of_it_are_one_place():
    assert located("s3://bucket/folder") == located("s3:/bucket/folder") == RemotePath("s3://bucket/folder")
    assert located("s3://bucket/folder").url == "s3://bucket/folder"
    assert (located("https://host/a") / "b.csv").url == "https://host/a/b.csv"
    assert not isinstance(located("a/b"), RemotePath)
    assert not isinstance(located("/a:b/c"), RemotePath)


@pytest.mark.parametrize("listed", [True, False], ids=["listed once", "asked each time"])
def test_names_below_a_remote_folder(away, listed):
    root = source_folder(away) if listed else located(away)
    assert root.names() == ["files", "list-2.0.csv.gz", "list-2.1.csv"]
    assert [path.name for path in root.glob("list-2.*.csv")] == ["list-2.1.csv"]
    assert [path.name for path in root.glob("files/p1?/p*/s5")] == ["s5"]
    assert (root / "files/p10/p100/s5").is_dir()
    assert (root / "files/p10/p100/s5.txt").is_file()
    assert not (root / "files/p10/p100/s6.txt").exists()
    assert list((root / "elsewhere").glob("*")) == []
    with pytest.raises(FileNotFoundError):
        (root / "elsewhere").names()


def test_a_source_folder_is_listed_once(away, monkeypatch):
    calls = []
    find = fsspec.implementations.memory.MemoryFileSystem.find
    monkeypatch.setattr(
        fsspec.implementations.memory.MemoryFileSystem, "find", lambda *a, **o: (calls.append(1), find(*a, **o))[1]
    )
    root = source_folder(away)
    for _ in range(3):
        assert (root / "files/p10/p100/s5/a.dcm").exists()
    assert len(calls) == 1
    source_folder(away)  # a new build looks again
    assert (root / "list-2.1.csv").exists()
    assert len(calls) == 2


def test_contents(away):
    root = located(away)
    assert (root / "list-2.1.csv").read_text("ascii") == "list-2.1.csv"
    with (root / "list-2.1.csv").open("rb") as file:
        assert file.read(4) == b"list"
    with pytest.raises(ValueError, match="only read as bytes"):
        (root / "list-2.1.csv").open("w")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("s5.txt", "clear")
    fsspec.filesystem("memory").pipe_file(f"{away.removeprefix('memory:/')}/reports.zip", packed.getvalue())
    with (root / "reports.zip").open("rb") as file:
        assert zipfile.ZipFile(file).read("s5.txt") == b"clear"


def test_a_missing_remote_table_is_told_as_a_local_one(away):
    with pytest.raises(InputError) as error:
        read_table(located(away) / "none.csv", ["a"], kind="a table")
    assert error.value.reason == "file_missing"


def test_fixations_are_loaded_from_a_url(corpus, tmp_path):
    path = next(corpus.reflacx.rglob("fixations.csv"))
    uploaded(path.parent, f"memory://{tmp_path.name}")
    away = load_fixations(f"memory://{tmp_path.name}/fixations.csv", "reflacx")
    assert (away.x_px == load_fixations(path, "reflacx").x_px).all()


@pytest.mark.parametrize("name", ["mimic", "reflacx"])
def test_a_remote_folder_that_is_no_release_is_refused(corpus, config_of, tmp_path, away, name):
    with pytest.raises(InputError) as error:
        build(config_of(tmp_path / "out", sources_of(corpus, **{name: away + "/files/p10"})))
    assert error.value.reason == "wrong_folder"


@pytest.mark.slow
def test_tables_and_pictures_from_a_web_server(tables, tmp_path):
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp, which is not installed")
    tables.image("a")
    tables.reading("r", "a")
    build(BuildConfig(tmp_path / "local", Sources(table=tables.source()), SMALL))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tables.root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        source = TableSource(f"{url}/images.csv", f"{url}/fixations.csv", f"{url}/words.csv", name="own")
        build(BuildConfig(tmp_path / "away", Sources(table=source), SMALL))
        server.shutdown()
    assert tree(tmp_path / "away") == tree(tmp_path / "local")
