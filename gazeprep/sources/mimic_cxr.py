"""Reads MIMIC-CXR and MIMIC-CXR-JPG folders: the image list, report files, CheXpert labels and splits.

Either folder or both may be given, whole or in part, and their tables may lie in either of them:

    files/p10/p10000032/s50414267/<dicom id>.dcm    files/p10/p10000032/s50414267.txt    MIMIC-CXR
    files/p10/p10000032/s50414267/<dicom id>.jpg    mimic-cxr-2.0.0-*.csv.gz             MIMIC-CXR-JPG
"""

import functools
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from gazeprep.priors import DAY_MS, Priors, last_before
from gazeprep.remote_paths import RemotePath, file_version, located
from gazeprep.reports import Override
from gazeprep.schema import (
    CHEXPERT_LABELS,
    LABEL_ABSENT,
    SPLITS,
    FloatArray,
    ImageRef,
    InputError,
    ReportRef,
    Size,
    Split,
)
from gazeprep.sources.bounded import OutOfBoundsError, read_bytes
from gazeprep.sources.csv_table import numbers, read_table, read_tables

ImageKind = Literal["dicom", "jpg"]
LabelTable = Literal["chexpert", "negbio", "test_set"]
ImageFiles = dict[tuple[str, str], ImageRef]  # by study path and dicom id

# Releases of MIMIC-CXR-JPG keep the table names of 2.0.0; cxr-record-list carries no version.
_METADATA = "mimic-cxr-2.*-metadata.csv"
_SPLIT = "mimic-cxr-2.*-split.csv"
_RECORDS = "cxr-record-list.csv"
_LABELS: dict[LabelTable, str] = {
    "chexpert": "mimic-cxr-2.*-chexpert.csv",
    "negbio": "mimic-cxr-2.*-negbio.csv",
    "test_set": "mimic-cxr-2.*-test-set-labeled.csv",
}
_TEST_SET_NAMES = {"Lung Opacity": "Airspace Opacity"}
_LABEL_OF_CELL = {"1.0": 1, "1": 1, "0.0": 0, "0": 0, "-1.0": -1, "-1": -1, "": LABEL_ABSENT}
_ZIP = "mimic-cxr-reports.zip"
# What zipfile and its decompressors raise on a damaged zip, on an encrypted one (RuntimeError) and other compressions.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    LookupError,
    ValueError,
    EOFError,
    RuntimeError,
)
_REPORT_FOLDERS = ("files", "mimic-cxr-reports/files")
# Where wget and users put the releases, seen from a folder that is given by mistake.
_RELEASE_FOLDERS = tuple(
    f"{above}{name}"
    for above in ("", "files/", "physionet.org/files/")
    for name in ("2.*", "mimic-cxr*", "mimic-cxr*/2.*")
)
IDS = ["dicom_id", "subject_id", "study_id"]
_DATES = ("StudyDate", "StudyTime")
_EPOCH = pd.Timestamp("1970-01-01")
_IMAGE_KINDS: dict[str, ImageKind] = {".dcm": "dicom", ".jpg": "jpg"}


@dataclass(frozen=True, slots=True)
class MimicImage:
    """One image of the tables; ids are digits without p or s, `image` is None where the file is not there."""

    dicom_id: str
    study_id: str
    subject_id: str
    view_position: str
    split: Split | Literal[""]  # "" where no table tells
    size: Size | None
    image: ImageRef | None


@dataclass(frozen=True, eq=False)
class MimicCxr:
    """What the folders hold; `absent_tables` names the tables that are in neither."""

    images: tuple[MimicImage, ...]
    split_of_dicom: dict[str, Split]
    split_of_subject: dict[str, Split]
    overrides: dict[str, Override]  # by study
    priors: Priors | None  # None where they were not asked for
    absent_tables: tuple[str, ...]
    _find_report: Callable[[str, str], ReportRef | None] = field(repr=False)
    _label_row_of_study: dict[str, int] = field(repr=False)
    _labels: npt.NDArray[np.int8] = field(repr=False)  # (label rows, 14)

    @functools.cached_property
    def by_dicom(self) -> dict[str, MimicImage]:
        """The images by their dicom id."""
        return {image.dicom_id: image for image in self.images}

    def labels(self, study_id: str) -> dict[str, int]:
        """Return a study's labels: 1 present, 0 absent, -1 uncertain, -2 not mentioned or no row."""
        row = self._label_row_of_study.get(study_id)
        values = [LABEL_ABSENT] * len(CHEXPERT_LABELS) if row is None else self._labels[row].tolist()
        return dict(zip(CHEXPERT_LABELS, values, strict=True))

    def report_ref(self, study_id: str, subject_id: str) -> ReportRef | None:
        """Return where a study's report lies; None where there is none."""
        return self._find_report(study_id, subject_id)


@dataclass(frozen=True)
class _ReleaseReports:
    """The reports of the releases in these folders."""

    roots: tuple[Path, ...]

    def find(self, study_id: str, subject_id: str) -> ReportRef | None:
        """Return where a study's report lies, a text file before the zip."""
        study = study_path(study_id, subject_id)
        for root, folder in self._report_folders:
            path = f"{folder}/{study}.txt"
            if _is_there(root, path):
                return ReportRef(root, path)
        return self._zipped_reports.get(study)

    @functools.cached_property
    def _report_folders(self) -> list[tuple[str, str]]:
        return [(str(root), folder) for root in self.roots for folder in _REPORT_FOLDERS if (root / folder).is_dir()]

    @functools.cached_property
    def _zipped_reports(self) -> dict[str, ReportRef]:
        found: dict[str, ReportRef] = {}
        for root in self.roots:
            if not (root / _ZIP).is_file():
                continue
            for member in _zip(root / _ZIP).namelist():
                if member.endswith(".txt"):
                    study = "/".join(member.removesuffix(".txt").split("/")[-3:])
                    found.setdefault(study, ReportRef(str(root), _ZIP, member))
        return found


def open_mimic(
    dicom_root: Path | None,
    jpg_root: Path | None,
    *,
    overrides: Path | None = None,
    prefer: ImageKind = "dicom",
    labels: LabelTable = "chexpert",
    prior: bool = False,
) -> MimicCxr:
    """Open a MIMIC-CXR folder, a MIMIC-CXR-JPG folder, or both.

    `prefer` says which file stands for an image that is there as both. `overrides` is a csv table
    `study_id, section, start, end` of the reports that a person sectioned (see `reports.Override`). `prior`: find each
    study's last one before, by the metadata table's dates and times.
    Raises InputError: wrong_folder, file_missing, unreadable_table, wrong_columns, bad_id, bad_number,
    bad_size, bad_date, duplicate_id, table_conflict, bad_split, split_leak, bad_label, bad_override.
    """
    roots = _checked_roots(dicom_root, jpg_root)
    if labels != "chexpert" and not _find_table(roots, _LABELS[labels]):
        raise InputError("file_missing", f"the {labels} label table {_LABELS[labels]} is in neither folder; add it")
    paths = MimicTables(
        metadata=_find_table(roots, _METADATA),
        split=_find_table(roots, _SPLIT),
        records=_find_table(roots, _RECORDS),
        labels=_find_table(roots, _LABELS[labels]),
        label_kind=f"{labels} label table",
    )
    return read_mimic(
        paths,
        lambda ids: _image_files(roots, ids, prefer),
        _ReleaseReports(roots).find,
        overrides=overrides,
        prior=prior,
        ids_on_disk=lambda: _ids_on_disk(roots),
    )


@dataclass(frozen=True)
class MimicTables:
    """The files of each table, several to be read as one; none where it is absent."""

    metadata: Sequence[Path]
    split: Sequence[Path]
    labels: Sequence[Path]
    label_kind: str
    records: Sequence[Path] = ()


def read_mimic(
    paths: MimicTables,
    find_images: Callable[[pd.DataFrame], ImageFiles],
    find_report: Callable[[str, str], ReportRef | None],
    *,
    overrides: Path | None,
    prior: bool,
    ids_on_disk: Callable[[], pd.DataFrame],
) -> MimicCxr:
    """Read the tables and find the files of a layout of MIMIC-CXR.

    `find_images` gives the files of a table of ids, by study path and dicom id. `find_report` is asked with study and
    subject. `ids_on_disk` lists the images where no table does. Raises InputError as `open_mimic` does.
    """
    if prior and not paths.metadata:
        raise InputError(
            "file_missing",
            f"sample.prior needs the dates of MIMIC's metadata table, {_METADATA}.gz of MIMIC-CXR-JPG; add it, or "
            "leave sample.prior out",
        )
    metadata = _metadata(paths.metadata, _DATES if prior else ())
    split_table = _split_table(paths.split)
    split_of_subject = _split_of_subject(split_table)
    ids = _listed_ids([metadata, _read_ids(paths.records, "MIMIC cxr-record-list", [], []), split_table], ids_on_disk)
    files = find_images(ids)
    row_of_study, label_values = _label_values(paths.labels, paths.label_kind)
    tables = {
        "MIMIC metadata table": paths.metadata,
        "MIMIC split table": paths.split,
        f"MIMIC {paths.label_kind}": paths.labels,
    }
    split_of_dicom = cast(dict[str, Split], _lookup(split_table, "split"))
    return MimicCxr(
        images=tuple(_images(ids, metadata, split_of_dicom, split_of_subject, files)),
        split_of_dicom=split_of_dicom,
        split_of_subject=split_of_subject,
        overrides={} if overrides is None else _overrides(overrides),
        priors=_priors(ids, metadata) if prior else None,
        _find_report=find_report,
        _label_row_of_study=row_of_study,
        _labels=label_values,
        absent_tables=tuple(kind for kind, found in tables.items() if not found),
    )


def read_report(ref: ReportRef) -> str:
    """Read a report as text with plain newlines; safe in worker processes.

    Raises InputError (report_unreadable).
    """
    path = located(ref.root) / ref.path
    try:
        with _zip(path).open(ref.member) if ref.member else path.open("rb") as file:
            content = read_bytes(file)
    except OutOfBoundsError as error:
        raise InputError("report_unreadable", f"a report {error}; download it again") from None
    except _ZIP_ERRORS as error:
        raise InputError(
            "report_unreadable",
            f"a report {'in ' + _ZIP if ref.member else 'file'} cannot be read ({type(error).__name__}); "
            "download it again",
        ) from None
    return content.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def _zip(path: Path) -> zipfile.ZipFile:
    """Open a zip, or return it as long as the same file is there."""
    try:
        return _open_zip(str(path), os.getpid(), file_version(path))
    except _ZIP_ERRORS as error:
        raise InputError(
            "report_unreadable", f"{_ZIP} cannot be opened ({type(error).__name__}); download it again"
        ) from None


@functools.lru_cache(maxsize=4)
def _open_zip(path: str, process: int, version: tuple[Any, ...]) -> zipfile.ZipFile:
    """Open a zip once a process: a forked process would share the file position of its parent."""
    del process, version
    place = located(path)
    return zipfile.ZipFile(place.open("rb") if isinstance(place, RemotePath) else place)


# Folders


def study_path(study_id: str, subject_id: str) -> str:
    """Return the place of a study in the releases, such as p10/p10000032/s50414267."""
    return f"p{subject_id[:2]}/p{subject_id}/s{study_id}"


def _checked_roots(dicom_root: Path | None, jpg_root: Path | None) -> tuple[Path, ...]:
    given = {"MIMIC-CXR-JPG": jpg_root, "MIMIC-CXR": dicom_root}
    roots = {name: located(root) for name, root in given.items() if root is not None}
    if not roots:
        raise InputError("wrong_folder", "no MIMIC folder is given; give dicom_root, jpg_root or both")
    for name, root in roots.items():
        _check_root(root, name)
    return tuple(dict.fromkeys(roots.values()))


def _check_root(root: Path, name: str) -> None:
    if root.is_file():
        raise InputError("wrong_folder", f"{name} is given as a file; give the folder that holds it")
    if not root.is_dir():
        raise InputError("wrong_folder", f"the {name} folder does not exist; check its path for a typing error")
    if _is_root(root):
        return
    below = [path for pattern in _RELEASE_FOLDERS for path in sorted(root.glob(pattern)) if _is_root(path)]
    if below:
        names = (path.relative_to(root).as_posix() for path in below)
        cure = f"give its subfolder {' or '.join(names)}"
    elif _groups(root):
        cure = "give the folder above it, the one that holds files"
    else:
        cure = "give the folder of the release, such as physionet.org/files/mimic-cxr/2.1.0"
    wanted = f"files/p10 to files/p19, {_METADATA}.gz, {_SPLIT}.gz, {_RECORDS}.gz, {_ZIP}"
    raise InputError("wrong_folder", f"the {name} folder holds none of {wanted}: {cure}")


def _is_root(folder: Path) -> bool:
    if _groups(folder / "files") or _groups(folder / "mimic-cxr-reports" / "files"):
        return True
    patterns = (_METADATA, _SPLIT, _RECORDS, *_LABELS.values())
    return (folder / _ZIP).is_file() or any(_find_table((folder,), pattern) for pattern in patterns)


def _groups(files: Path) -> list[str]:
    """Return the names p10 to p19 in a files folder: physionet.org/files has none."""
    return [name for name in _names(files) if len(name) == 3 and name[0] == "p" and name[1:].isdecimal()]


def _names(folder: Path) -> list[str]:
    """Return the sorted names in a folder, none where it is no folder."""
    try:
        if isinstance(folder, RemotePath):
            return folder.names()
        return sorted(os.listdir(folder))  # noqa: PTH208 - names only, for hundreds of thousands of folders
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(
            "wrong_folder", f"a MIMIC folder cannot be listed ({type(error).__name__}); check its permissions"
        ) from None


def _is_there(root: str, path: str) -> bool:
    if isinstance(located(root), RemotePath):
        return (located(root) / path).is_file()
    return os.path.exists(f"{root}/{path}")  # noqa: PTH110 - called for each of 227,835 studies


def _find_table(roots: Sequence[Path], pattern: str) -> list[Path]:
    """Return the table of the newest release, compressed before not, in the first folder that has one, if any."""
    for root in roots:
        found = [*root.glob(pattern), *root.glob(f"{pattern}.gz")]
        if found:
            return [max(found, key=lambda path: path.name)]
    return []


def _image_paths(roots: Sequence[Path], subjects: set[str] | None) -> Iterator[tuple[Path, str, str]]:
    """Yield root, study path and file name of each image of these subjects, of all where None."""
    for root in roots:
        files = root / "files"
        for group in _groups(files):
            for subject in _names(files / group):
                if not _is_id(subject, "p") or (subjects is not None and subject[1:] not in subjects):
                    continue
                for study in _names(files / group / subject):
                    if _is_id(study, "s"):
                        path = f"{group}/{subject}/{study}"
                        for name in _names(files / path):
                            yield root, path, name


def _is_id(name: str, letter: str) -> bool:
    return name[:1] == letter and name[1:].isdecimal()


def _image_files(roots: Sequence[Path], ids: pd.DataFrame, prefer: ImageKind) -> ImageFiles:
    """Return the images on disk by study path and dicom id."""
    found: ImageFiles = {}
    for root, study, name in _image_paths(roots, set(ids["subject_id"])):
        stem, suffix = name[:-4], name[-4:]
        kind = _IMAGE_KINDS.get(suffix)
        if kind is None or (kind != prefer and (study, stem) in found):
            continue
        path = f"files/{study}/{name}"
        if kind == "dicom":
            found[study, stem] = ImageRef(str(root), path, "dicom", "mimic-cxr")
        else:
            found[study, stem] = ImageRef(str(root), path, "raster", "mimic-cxr-jpg")
    return found


# Tables


def _bad_cell(reason: str, kind: str, column: str, bad: npt.NDArray[np.bool_], what: str) -> InputError:
    row = np.flatnonzero(bad)[0] + 1
    return InputError(reason, f"{kind}, row {row}, column {column!r} {what} ({bad.sum()} of {len(bad)} rows)")


def _plain_ids(table: pd.DataFrame, column: str, letter: str, kind: str) -> pd.Series:
    """Return ids as digits, without the letter of their folders or files."""
    ids = table[column].str.strip().str.removeprefix(letter)
    bad = ~ids.str.fullmatch(r"\d{1,20}").to_numpy(dtype=bool)  # more digits would name no folder
    if bad.any():
        raise _bad_cell("bad_id", kind, column, bad, "is not a number; check that the columns are not shifted")
    return ids


def _read_ids(paths: Sequence[Path], kind: str, columns: Sequence[str], optional: Sequence[str]) -> pd.DataFrame:
    """Read a table of images, indexed by dicom id; without a path it has no rows."""
    table = read_tables(paths, [*IDS, *columns], kind=kind, optional=optional).copy()
    for column, letter in (("subject_id", "p"), ("study_id", "s")):
        table[column] = _plain_ids(table, column, letter, kind)
    table["dicom_id"] = table["dicom_id"].str.strip()
    bad = (table["dicom_id"] == "").to_numpy()
    if bad.any():
        raise _bad_cell("bad_id", kind, "dicom_id", bad, "is empty; remove the row")
    _check_unique(table["dicom_id"], kind)
    return table.set_index("dicom_id", drop=False)


def _check_unique(ids: pd.Series, kind: str) -> None:
    repeated = ids.duplicated().to_numpy()
    if repeated.any():
        second = np.flatnonzero(repeated)[0]
        first = np.flatnonzero((ids == ids.iloc[second]).to_numpy())[0]
        raise InputError(
            "duplicate_id",
            f"{kind}, rows {first + 1} and {second + 1} have the same {ids.name}; remove one of them "
            f"({repeated.sum()} of {len(ids)} rows repeat an earlier one)",
        )


def _metadata(paths: Sequence[Path], dates: Sequence[str]) -> pd.DataFrame:
    kind = "MIMIC metadata table"
    table = _read_ids(paths, kind, ["ViewPosition", *dates], ["Rows", "Columns"])
    table["ViewPosition"] = table["ViewPosition"].str.strip()
    for column in ("Rows", "Columns"):
        if column not in table:
            table[column] = np.nan
            continue
        values = numbers(table, column, kind=kind, empty=np.nan)
        bad = (values < 1) | (values != np.round(values)) & np.isfinite(values)
        if bad.any():
            what = "is not a number of pixels; download the table again"
            raise _bad_cell("bad_size", kind, column, bad, what)
        table[column] = values
    return table.assign(began_ms=_began_ms(table, kind)) if dates else table


def _priors(ids: pd.DataFrame, metadata: pd.DataFrame) -> Priors:
    began_ms = ids["dicom_id"].map(metadata["began_ms"]).astype(np.float64)  # of tables without rows it would be text
    return last_before(ids.assign(began_ms=began_ms))


def _began_ms(table: pd.DataFrame, kind: str) -> FloatArray:
    """Return when each image's study began (rows,), in ms since 1970; NaN without a date or a time."""
    date, clock = (numbers(table, column, kind=kind, empty=np.nan) for column in _DATES)
    digits = np.where((date >= 1e7) & (date < 1e8), date, 0)
    day = pd.to_datetime(pd.Series(digits.astype(np.int64)).astype(str), format="%Y%m%d", errors="coerce")
    hours, minutes, seconds = clock // 10_000, clock // 100 % 100, clock % 100
    bad_day = np.isfinite(date) & (day.isna().to_numpy() | (date != np.floor(date)))
    bad_clock = (clock < 0) | (hours > 23) | (minutes > 59) | (seconds >= 61)  # DICOM knows leap seconds
    for column, bad, form in (("StudyDate", bad_day, "day YYYYMMDD"), ("StudyTime", bad_clock, "time HHMMSS.fff")):
        if bad.any():
            raise _bad_cell("bad_date", kind, column, bad, f"is no {form}; download the table again")
    days = ((day - _EPOCH) / pd.Timedelta(days=1)).to_numpy(dtype=np.float64)
    return np.asarray(days * DAY_MS + np.round(((hours * 60 + minutes) * 60 + seconds) * 1000))


def _split_table(paths: Sequence[Path]) -> pd.DataFrame:
    kind = "MIMIC split table"
    table = _read_ids(paths, kind, ["split"], [])
    table["split"] = table["split"].str.strip()
    bad = ~table["split"].isin(SPLITS).to_numpy()
    if bad.any():
        raise _bad_cell("bad_split", kind, "split", bad, f"is none of {', '.join(SPLITS)}; correct the cell")
    return table


def _split_of_subject(split_table: pd.DataFrame) -> dict[str, Split]:
    rows = split_table.reset_index(drop=True)
    pairs = rows.drop_duplicates(["subject_id", "split"])
    leaked = pairs.loc[pairs["subject_id"].duplicated(keep=False), "subject_id"]
    if len(leaked):
        first = pairs[pairs["subject_id"] == leaked.iloc[0]]
        where = " and ".join(f"row {row + 1} ({split})" for row, split in first["split"].items())
        raise InputError(
            "split_leak",
            f"MIMIC split table: {leaked.nunique()} of {rows['subject_id'].nunique()} subjects are in more "
            f"than one split, the first in {where}; give all images of a subject one split",
        )
    return cast(dict[str, Split], dict(zip(pairs["subject_id"].tolist(), pairs["split"].tolist(), strict=True)))


def _listed_ids(tables: Sequence[pd.DataFrame], ids_on_disk: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Return the ids of each image of any table; without a table, of each image file."""
    ids = pd.concat([table[IDS] for table in tables if len(table)] or [ids_on_disk()])
    ids = ids.drop_duplicates().reset_index(drop=True)
    conflicts = ids["dicom_id"].duplicated()
    if conflicts.any():
        raise InputError(
            "table_conflict",
            f"{conflicts.sum()} of {len(ids)} images have different study or subject ids in two MIMIC tables "
            "or folders; take the tables and files from one release",
        )
    return ids


def _ids_on_disk(roots: Sequence[Path]) -> pd.DataFrame:
    rows = [
        (name[:-4], study.split("/")[1][1:], study.split("/")[2][1:])
        for _, study, name in _image_paths(roots, None)
        if name[-4:] in _IMAGE_KINDS
    ]
    return pd.DataFrame(rows, columns=IDS, dtype=str)


def _lookup(table: pd.DataFrame, column: str) -> dict[str, str]:
    return dict(zip(table["dicom_id"].tolist(), table[column].tolist(), strict=True))


def _images(
    ids: pd.DataFrame,
    metadata: pd.DataFrame,
    split_of_dicom: dict[str, Split],
    split_of_subject: dict[str, Split],
    files: dict[tuple[str, str], ImageRef],
) -> Iterator[MimicImage]:
    views = _lookup(metadata, "ViewPosition")
    known = metadata.dropna(subset=["Rows", "Columns"])
    sizes = zip(known["Columns"].astype(int).tolist(), known["Rows"].astype(int).tolist(), strict=True)
    size_of: dict[str, Size] = dict(zip(known["dicom_id"].tolist(), sizes, strict=True))
    for dicom, subject, study in zip(*(ids[column].tolist() for column in IDS), strict=True):
        yield MimicImage(
            dicom_id=dicom,
            study_id=study,
            subject_id=subject,
            view_position=views.get(dicom, ""),
            split=split_of_dicom.get(dicom, split_of_subject.get(subject, "")),
            size=size_of.get(dicom),
            image=files.get((study_path(study, subject), dicom)),
        )


def _label_values(paths: Sequence[Path], kind: str) -> tuple[dict[str, int], npt.NDArray[np.int8]]:
    """Return the row of each study and the label values (rows, 14)."""
    renamed = _TEST_SET_NAMES if any(path.match("*-test-set-labeled.*") for path in paths) else {}
    columns = [renamed.get(name, name) for name in CHEXPERT_LABELS]
    table = read_tables(paths, ["study_id", *columns], kind=kind)
    studies = _plain_ids(table, "study_id", "s", kind)
    _check_unique(studies, kind)
    values = np.empty((len(table), len(columns)), dtype=np.int8)
    for i, column in enumerate(columns):
        labels = table[column].str.strip().map(_LABEL_OF_CELL)
        bad = labels.isna().to_numpy()
        if bad.any():
            raise _bad_cell("bad_label", kind, column, bad, "is none of 1.0, 0.0, -1.0 and blank; correct it")
        values[:, i] = labels
    return dict(zip(studies.tolist(), range(len(studies)), strict=True)), values


def _overrides(path: Path) -> dict[str, Override]:
    kind = "overrides table"
    table = read_table(path, ["study_id", "section", "start", "end"], kind=kind)
    studies = _plain_ids(table, "study_id", "s", kind)
    _check_unique(studies, kind)
    starts = numbers(table, "start", kind=kind, empty=-1)
    ends = numbers(table, "end", kind=kind, empty=-1)
    overrides = {}
    rows = zip(studies, table["section"], starts, ends, strict=True)
    for row, (study, section, start, end) in enumerate(rows, start=1):
        try:
            overrides[study] = Override(section.strip().lower(), int(start), int(end))
        except InputError as error:
            raise InputError(error.reason, f"{kind}, row {row}: {error}") from None
    return overrides
