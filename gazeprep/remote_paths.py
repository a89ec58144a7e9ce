"""Source files on what fsspec knows, such as s3://bucket/mimic-cxr, as the paths that the readers already use.

What lies below a source folder is listed once, in one go; asking for each of 600,000 files would take hours.
"""

import fnmatch
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PosixPath
from typing import Any, cast

from gazeprep.stores import CUT_URL, URL, answering, open_place

_roots: set[str] = set()  # source folders of which this process has, or will have, a listing


def located(place: Path | str) -> Path:
    """Return a path, or what stands for one where it is a URL; pathlib has cut // to / in a URL that it has seen."""
    text = str(place)
    return RemotePath(text) if URL.match(text) or CUT_URL.match(text) else Path(place)


def source_folder(place: Path | str) -> Path:
    """Return the path of a source folder; a remote one is listed anew when it is first asked for names."""
    path = located(place)
    if isinstance(path, RemotePath):
        _roots.add(str(path))
        _listed.cache_clear()
    return path


def file_version(path: Path) -> tuple[Any, ...]:
    """Return what changes with a file, its size first: of one here also what putting its old time back does not undo.

    Raises OSError where it is absent.
    """
    if isinstance(path, RemotePath):
        return tuple(path.version())
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


class RemotePath(PosixPath):
    """A path that fsspec reads, as far as the readers use paths. Raises OSError whatever the store's library raises."""

    @property
    def url(self) -> str:
        """The path as a URL."""
        return str(self).replace(":/", "://", 1)

    def version(self) -> list[Any]:
        """Return the file's size and what the store says of its content or time; raises FileNotFoundError."""
        filesystem, name = open_place(self.url, os.getpid())
        with answering(self.url):
            facts: dict[str, Any] = filesystem.info(name)
        told = [facts[key] for key in ("ETag", "etag", "LastModified", "mtime", "created") if key in facts]
        return [facts["size"], *map(str, told[:1])]

    def names(self) -> list[str]:
        """Return the sorted names in a folder; raises FileNotFoundError."""
        listing = self._listing()
        if listing is not None:
            if str(self) not in listing.folders:
                raise FileNotFoundError(self.name)
            return sorted(listing.folders[str(self)])
        filesystem, name = open_place(self.url, os.getpid())
        with answering(self.url):
            found = filesystem.ls(name, detail=False)
        return sorted({str(one).rstrip("/").rsplit("/", 1)[-1] for one in found})

    def glob(self, pattern: str, **_: Any) -> Iterator["RemotePath"]:  # type: ignore[override]
        """Yield the paths below that fit a pattern without **."""
        first, rest = (*pattern.split("/", 1), "")[:2]
        for name in self.names() if self.is_dir() else ():
            if fnmatch.fnmatchcase(name, first):
                yield from (self / name).glob(rest) if rest else (self / name,)

    def exists(self, **_: Any) -> bool:
        """Tell whether there is such a file or folder."""
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        """Tell whether there is such a file."""
        listing = self._listing()
        return str(self) in listing.files if listing is not None else self._is("isfile")

    def is_dir(self, **_: Any) -> bool:
        """Tell whether there is such a folder."""
        listing = self._listing()
        return str(self) in listing.folders if listing is not None else self._is("isdir")

    def read_bytes(self) -> bytes:
        """Read the whole file."""
        filesystem, name = open_place(self.url, os.getpid())
        with answering(self.url):
            return cast(bytes, filesystem.cat_file(name))

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        """Read the whole file as text with plain newlines."""
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding, errors).read()

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        """Open the file for reading bytes: a zip by blocks, others in one request."""
        if mode != "rb":
            raise ValueError(f"mode is {mode!r}; files of remote sources are only read as bytes, 'rb'")
        if self.suffix != ".zip":
            return io.BytesIO(self.read_bytes())
        filesystem, name = open_place(self.url, os.getpid())
        with answering(self.url):
            return filesystem.open(name, "rb")

    def _is(self, what: str) -> bool:
        filesystem, name = open_place(self.url, os.getpid())
        with answering(self.url):
            return bool(getattr(filesystem, what)(name))

    def _listing(self) -> "_Listing | None":
        """Return the listing of the source folder that this path lies in, None where it lies in none."""
        text = str(self)
        above = [root for root in _roots if text == root or text.startswith(f"{root}/")]
        return _listed(min(above, key=len)) if above else None


@dataclass(frozen=True, eq=False)
class _Listing:
    """What lies below a source folder, by the text of the path."""

    files: set[str]
    folders: dict[str, set[str]]  # the names in each


@cache
def _listed(root: str) -> _Listing:
    url = RemotePath(root).url
    filesystem, name = open_place(url, os.getpid())
    with answering(url):
        found = [str(one) for one in filesystem.find(name)]
    files: set[str] = set()
    folders: dict[str, set[str]] = {}
    for below in (one.split(name.rstrip("/"), 1)[1].strip("/") for one in found):
        if below:
            files.add(f"{root}/{below}")
        while below:
            below, _, last = below.rpartition("/")
            folders.setdefault(f"{root}/{below}".rstrip("/"), set()).add(last)
    return _Listing(files, folders)
