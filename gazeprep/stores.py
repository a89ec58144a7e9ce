"""Where shards lie: a folder, or a place that fsspec knows, such as s3://bucket/shards. A name appears only whole.

A folder's files take their final names by a rename. Remote stores have no rename, but show nothing of an upload
that is not finished, so there each name is put once. Names are relative to the store, their parts joined by "/".
"""

import errno
import glob
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Self, cast

URL = re.compile(r"[a-z][a-z0-9+.-]+://")
CUT_URL = re.compile(r"[a-z][a-z0-9+.-]+:/[^/]")  # what pathlib makes of a URL
READ_ONLY = ("http", "https")
WORK_FOLDER = ".build"  # beside the shards: lock, unfinished tars, stats of finished ones
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # network file systems that were mounted without them


@dataclass(frozen=True)
class LocalStore:
    """A folder."""

    root: Path

    def begin(self) -> None:
        """Make the folder one that a build writes into."""
        (self.root / WORK_FOLDER).mkdir(parents=True, exist_ok=True)

    def entries(self, folder: str = "") -> list[str]:
        """Return the names of files and folders directly below a folder, sorted; none where it is absent."""
        place = self.root / folder
        return sorted(path.name for path in place.iterdir()) if place.exists() else []

    def size(self, name: str) -> int | None:
        """Return a file's length in bytes, None where it is absent."""
        path = self.root / name
        return path.stat().st_size if path.exists() else None

    def open(self, name: str) -> BufferedIOBase:
        """Open a file for reading; raises FileNotFoundError."""
        return (self.root / name).open("rb")

    def read(self, name: str) -> bytes:
        """Read a whole file; raises FileNotFoundError."""
        return (self.root / name).read_bytes()

    def part(self, name: str, start: int, length: int) -> bytes:
        """Read so many bytes of a file from `start`, fewer where it ends before."""
        with self.open(name) as file:
            file.seek(start)
            return file.read(length)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, which appears under its name when whole."""
        path = self.root / name
        with appearing_whole(path) as temporary:
            temporary.write_bytes(data)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Give a path for a large file in the making; what is left there at the end is removed."""
        # Host and process keep a worker that outlives a killed build for a moment away from the next build's file.
        path = self.root / WORK_FOLDER / f"{name}.{os.uname().nodename}.{os.getpid()}.unfinished"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def publish(self, path: Path, name: str) -> None:
        """Give a file from `scratch` its final name."""
        to_disk(path)
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        path.replace(self.root / name)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.root / name).unlink(missing_ok=True)

    def remove_empty(self, folder: str) -> None:
        """Remove a folder that holds nothing."""
        if (self.root / folder).exists() and not self.entries(folder):
            (self.root / folder).rmdir()

    def lock(self, name: str = "lock", *, shared: bool = False) -> AbstractContextManager[Any]:
        """Hold the folder for one build, or for any number of tasks."""
        return FolderLock(self.root / WORK_FOLDER / name, shared=shared)


@dataclass(frozen=True)
class RemoteStore:
    """A place that fsspec knows. There are no locks; raises OSError whatever the store's own library raises."""

    url: str

    def begin(self) -> None:
        """Mark the place as one that a build writes into."""
        self.write(f"{WORK_FOLDER}/begun", b"")

    def entries(self, folder: str = "") -> list[str]:
        """Return the names of files and folders directly below a folder, sorted; none where it is absent."""
        path = self._path(folder).rstrip("/")
        try:
            with answering(self.url):
                found = self._filesystem.ls(path, detail=False)
        except FileNotFoundError:
            return []
        names = {str(one).rstrip("/").rsplit("/", 1)[-1] for one in found if str(one).rstrip("/") != path}
        return sorted(names - {""})

    def size(self, name: str) -> int | None:
        """Return a file's length in bytes, None where it is absent."""
        try:
            with answering(self.url):
                return int(self._filesystem.info(self._path(name))["size"])
        except FileNotFoundError:
            return None

    def open(self, name: str) -> BufferedIOBase:
        """Open a file for reading; raises FileNotFoundError."""
        with answering(self.url):
            return cast(BufferedIOBase, self._filesystem.open(self._path(name), "rb"))

    def read(self, name: str) -> bytes:
        """Read a whole file; raises FileNotFoundError."""
        with answering(self.url):
            return cast(bytes, self._filesystem.cat_file(self._path(name)))

    def part(self, name: str, start: int, length: int) -> bytes:
        """Read so many bytes of a file from `start`, fewer where it ends before."""
        with answering(self.url):
            return cast(bytes, self._filesystem.cat_file(self._path(name), start=start, end=start + length))

    def write(self, name: str, data: bytes) -> None:
        """Put a file in one piece."""
        with answering(self.url):
            self._filesystem.pipe_file(self._path(name), data)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Give a local path for a large file in the making; what is left there at the end is removed."""
        folder = Path(tempfile.mkdtemp(prefix="gazeprep-"))
        try:
            yield folder / name
        finally:
            shutil.rmtree(folder)

    def publish(self, path: Path, name: str) -> None:
        """Put a file from `scratch` under its final name, in one upload."""
        with answering(self.url):
            self._filesystem.put_file(str(path), self._path(name))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.size(name) is not None:
            with answering(self.url):
                self._filesystem.rm_file(self._path(name))

    def remove_empty(self, folder: str) -> None:
        """Do nothing: a remote folder goes with its last file."""

    def lock(self, name: str = "lock", *, shared: bool = False) -> AbstractContextManager[Any]:
        """Do nothing: remote stores have no lock that ends with its process."""
        del name, shared
        return nullcontext()

    @property
    def in_this_process(self) -> bool:
        """Whether other processes see another store under the same name."""
        return self.url.startswith("memory://")

    @property
    def _filesystem(self) -> Any:
        return open_place(self.url, os.getpid())[0]

    def _path(self, name: str) -> str:
        root = open_place(self.url, os.getpid())[1].rstrip("/")
        return f"{root}/{name}" if name else root


Store = LocalStore | RemoteStore


def open_store(place: Path | str, *, writing: bool = False) -> Store:
    """Return the store of a folder or a URL; raises ValueError on a URL that cannot be used."""
    text = str(place)
    if CUT_URL.match(text) and not isinstance(place, str):
        raise ValueError(f"{text!r} was a URL before it became a Path; give it as text")
    if not URL.match(text):
        return LocalStore(Path(place))
    if text.startswith("file://"):
        return LocalStore(Path(text.removeprefix("file://")))
    protocol = text.split("://", 1)[0]
    if writing and protocol in READ_ONLY:
        raise ValueError(f"{protocol}:// can be read but not written; choose a folder, s3:// or gs:// as --out")
    open_place(text, os.getpid())  # a URL that cannot be used is told of at once
    return RemoteStore(text)


@cache
def open_place(url: str, process: int) -> tuple[Any, str]:
    """Return the file system of a URL and the path there, opened once a process: no connection survives a fork."""
    del process
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        # Without listings that are remembered: other processes write there too.
        filesystem, path = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        protocol, missing = url.split("://", 1)[0], error.name or "its library"
        raise ValueError(f"{protocol}:// needs {missing}; run pip install 'gazeprep-cogaze[remote]'") from None
    return filesystem, str(path)


@contextmanager
def answering(url: str) -> Iterator[None]:
    """Turn what the libraries of remote stores raise into OSError: their classes have no base in common."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        protocol = url.split("://", 1)[0]
        raise OSError(errno.EREMOTEIO, f"{type(error).__name__} from the {protocol}:// store") from error


# --- files


@contextmanager
def appearing_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path to write, which takes the final name where the block ends without an error."""
    temporary = _temporary(path)
    try:
        yield temporary
        to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def local_path(place: Path | str) -> Path:
    """Return the path of an output on a disk; raises ValueError on a URL, which would become a folder 's3:'."""
    if URL.match(str(place)) or CUT_URL.match(str(place)):
        raise ValueError("this is written to a disk, not to a URL; name a path here and copy it from there")
    return Path(place)


@contextmanager
def folder_appearing_whole(out: Path) -> Iterator[Path]:
    """Give a new folder to write into, which takes the final name where the block ends without an error.

    Raises ValueError where the final folder holds anything, or where the path was a URL.
    """
    out = local_path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError("the output folder is not empty; name a new one as --out")
    remove_abandoned(out)
    temporary = _temporary(out)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                to_disk(path)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes of this host left half-way of a file or folder."""
    for half in path.parent.glob(f".{glob.escape(path.name)}.{os.uname().nodename}.*.tmp"):
        process = half.name.removesuffix(".tmp").rpartition(".")[2]
        if process == str(os.getpid()) or (process.isdecimal() and not _is_alive(int(process))):
            shutil.rmtree(half, ignore_errors=True) if half.is_dir() else half.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """Return the name, beside a final one, under which this process writes."""
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def to_disk(path: Path) -> None:
    """Wait until a file's bytes are on the disk: else a power cut can leave a final name without them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def unusable(error: OSError) -> str:
    """Say what a disk or its files refused, and the cure, without the path that the error names."""
    why = error.strerror or type(error).__name__
    return f"a file or folder cannot be used ({why}); check the paths, their permissions and the free space"


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderLock:
    """Holds a folder for one build, or for several tasks at once; the lock goes with the process, however it ends.

    holder: what an error calls the other one.
    """

    def __init__(self, path: Path, *, shared: bool = False, holder: str = "build") -> None:
        self._path = path
        self._shared = shared
        self._holder = holder
        self._file: int | None = None

    def __enter__(self) -> Self:
        import fcntl

        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise ValueError(
                f"another {self._holder} is writing into this folder; wait for it or choose another --out"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(self._file)
                raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        os.close(self._file)
