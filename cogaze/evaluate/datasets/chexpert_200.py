"""CheXpert 5x200 and 8x200: from the lists of others, or built by their rules from train.csv."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from cogaze.evaluate.datasets.cells import labels_of
from cogaze.evaluate.datasets.chexpert_table import (
    FINDINGS,
    NAME,
    CheXpertTable,
    Values,
    blank_is_zero,
    chexpert_table,
    without_release,
)
from cogaze.evaluate.datasets.exclusive import EIGHT, FIVE, Positions, draw, note_pools, one_hot, pools
from cogaze.evaluate.datasets.folders import (
    Missing,
    Notes,
    counted,
    find_file,
    need_file,
    note_count,
    pictures_at,
    release_folder,
    with_picture,
)
from cogaze.evaluate.datasets.lists import read_lines, write_list
from cogaze.evaluate.records import EvalImage, EvalSet, LabelledText
from gazeprep.schema import ImageRef
from gazeprep.sources.csv_table import read_table

LIST_5X200 = "chexpert_5x200.txt"
LISTS_8X200 = {"candidates": "chexpert_8x200.txt", "queries": "chexpert_8x200_queries.txt"}


def read_chexpert_5x200(
    root: Path,
    lists: Path | None = None,
    *,
    per_class: int = 200,
    seed: int = 0,
    write: Path | None = None,
    plus: Path | None = None,
    missing: Missing = "refuse",
) -> EvalSet:
    """Build the set by GLoRIA's rule from train.csv, drawn as MGCA does, or read the list in `lists`.

    Frontal images with one of five findings, and none of the other twelve even uncertain. `write`: a folder for the
    list, to be given as `lists` from then on. `plus`: CheXpert Plus' table, for reports. The lists may also be a csv
    chexpert_5x200.csv with a column Path. Raises ValueError where a class has too few images, or a listed image has not
    exactly one of the five.
    """
    name, notes = f"{NAME} 5x200", Notes()
    root = release_folder(root, name)
    table = chexpert_table(need_file(root, ["train.csv"], name), "train")
    five = [FINDINGS.index(one) for one in FIVE]
    if lists is None:
        # No Finding is not tested, but a blank or 0 wherever one of the others is 1.
        found = _frontal(pools(blank_is_zero(table.values)[:, 1:], FINDINGS[1:], FIVE), table)
        note_pools(found, FIVE, notes)
        rows = np.concatenate(draw(found, FIVE, per_class, seed, name))
        origin = f"GLoRIA's rule on train.csv, {per_class} of each class drawn by pandas with random_state {seed}"
    else:
        rows = _listed_rows(list_5x200(lists), table, name)
        origin = "the list given"
        notes["lateral images in the list"] += int((~table.frontal[rows]).sum())
    if write is not None:
        write_list(write / LIST_5X200, [table.paths[row] for row in rows])
    values = table.values[rows][:, five] == 1
    if not (values.sum(axis=1) == 1).all():
        raise ValueError(f"{name}: {int((values.sum(axis=1) != 1).sum())} listed images have not exactly one of {FIVE}")
    labels = [tuple(row) for row in values.astype(int).tolist()]
    pictures = _pictures_of(table, rows, root, missing, name, notes)
    images = _with_reports(list(table.images(rows.tolist(), labels, pictures, notes)), plus, notes)
    return EvalSet(name, "multi-class", FIVE, {"test": images}, counted(notes), origin)


def read_chexpert_8x200(
    root: Path,
    lists: Path | None = None,
    *,
    images: Literal["candidates", "queries"] = "candidates",
    per_class: int = 200,
    seed: int = 0,
    write: Path | None = None,
    missing: Missing = "refuse",
) -> EvalSet:
    """Read ConVIRT's lists, or build the set by its rule: the candidates with the sentences, or the query images.

    `lists` holds image-retrieval/ and text-retrieval/ of yuhaozhang/convirt, or what `write` wrote. Without it
    candidates and, of each class, 10 queries (or per_class, if fewer) are drawn from train.csv's frontal images that
    have one label of all 14 and none uncertain: no radiologist has looked at those, and there are no sentences. Raises
    ValueError where lists and train.csv say different things, or share an image.
    """
    name, notes = f"{NAME} 8x200 {images}", Notes()
    root = release_folder(root, name)
    table = chexpert_table(need_file(root, ["train.csv"], name), "train")
    texts: tuple[LabelledText, ...] = ()
    if lists is None:
        chosen = _drawn_8x200(table, per_class, seed, name, notes)
        origin = f"ConVIRT's rule on train.csv, {per_class} of each class drawn by pandas with random_state {seed}"
    else:
        chosen = {one: _listed_rows(_list_8x200(lists, one), table, name) for one in LISTS_8X200}
        texts, origin = _texts(lists, notes), "the lists given"
        note_count(notes, "candidates", len(chosen["candidates"]), 1600)
        note_count(notes, "query images", len(chosen["queries"]), 80)
    shared = len(set(chosen["candidates"].tolist()) & set(chosen["queries"].tolist()))
    if shared:
        raise ValueError(f"{name}: {shared} images are candidates and queries; a query must not find itself")
    if write is not None:
        for one, file in LISTS_8X200.items():
            write_list(write / file, [table.paths[row] for row in chosen[one]])
    rows = chosen[images]
    labels = _labels_8x200(table.values[rows], name)
    pictures = _pictures_of(table, rows, root, missing, name, notes)
    found = tuple(table.images(rows.tolist(), labels, pictures, notes))
    return EvalSet(name, "multi-class", EIGHT, {"test": found}, counted(notes), origin, texts)


def _pictures_of(
    table: CheXpertTable, rows: Positions, root: Path, missing: Missing, name: str, notes: Notes
) -> dict[str, ImageRef]:
    paths = [table.paths[row] for row in rows]
    pictures = pictures_at(root, paths, "chexpert")
    with_picture(paths, pictures, missing, name, notes)
    return pictures


def _frontal(found: Sequence[Positions], table: CheXpertTable) -> list[Positions]:
    return [rows[table.frontal[rows]] for rows in found]


def _listed_rows(paths: Sequence[str], table: CheXpertTable, name: str) -> Positions:
    row_of = {path: row for row, path in enumerate(table.paths)}
    listed = [without_release(path) for path in paths]
    unknown = sum(path not in row_of for path in listed)
    if unknown:
        raise ValueError(
            f"{name}: {unknown} of {len(listed)} listed images are not in train.csv; take the whole release"
        )
    return np.array([row_of[path] for path in listed], dtype=np.int64)


def list_5x200(lists: Path) -> list[str]:
    """Return the paths of our list, or of a csv with a column Path, as EGMA's code has it."""
    name = f"{NAME} 5x200"
    path = need_file(release_folder(lists, f"{name} lists"), [LIST_5X200, "chexpert_5x200.csv"], name)
    if path.name == LIST_5X200:
        return read_lines(path)
    return [str(cell) for cell in read_table(path, ["Path"], kind=f"{name} list")["Path"]]


def _drawn_8x200(table: CheXpertTable, per_class: int, seed: int, name: str, notes: Notes) -> dict[str, Positions]:
    found = _frontal(pools(blank_is_zero(table.values), FINDINGS, EIGHT), table)
    note_pools(found, EIGHT, notes)
    queries = min(10, per_class)
    drawn = draw(found, EIGHT, per_class + queries, seed, name)
    return {
        "candidates": np.concatenate([rows[:per_class] for rows in drawn]),
        "queries": np.concatenate([rows[per_class:] for rows in drawn]),
    }


def _list_8x200(lists: Path, which: str) -> list[str]:
    """Return the paths of the candidates or the queries, of ConVIRT's csv files or ours."""
    name = f"{NAME} 8x200"
    convirt = {"candidates": "image-retrieval/candidate.csv", "queries": "image-retrieval/query.csv"}[which]
    path = need_file(release_folder(lists, f"{name} lists"), [LISTS_8X200[which], convirt], name)
    if path.suffix == ".txt":
        return read_lines(path)
    return [str(cell) for cell in read_table(path, ["Path"], kind=f"{name} {convirt}")["Path"]]


def _texts(lists: Path, notes: Notes) -> tuple[LabelledText, ...]:
    path = find_file(lists, ["text-retrieval/query.csv"])
    if path is None:
        notes["text-retrieval/query.csv is absent: sentences to retrieve with are missing"] += 40
        return ()
    kind = f"{NAME} 8x200 text-retrieval/query.csv"
    table = read_table(path, ["Variable", "Text"], kind=kind)
    places = {one: place for place, one in enumerate(EIGHT)}
    labels = labels_of(table["Variable"].tolist(), places, kind, "Variable")
    return tuple(LabelledText(text.strip(), label) for text, label in zip(table["Text"], labels, strict=True))


def _labels_8x200(values: Values, name: str) -> list[tuple[int, ...]]:
    found = pools(blank_is_zero(values), FINDINGS, EIGHT)
    label_of = {row: label for label, rows in enumerate(found) for row in rows.tolist()}
    if len(label_of) < len(values):
        raise ValueError(
            f"{name}: {len(values) - len(label_of)} listed images have not exactly one of {EIGHT} in train.csv; take "
            "lists and table of one release"
        )
    return [one_hot(label_of[row], EIGHT) for row in range(len(values))]


def _with_reports(images: Sequence[EvalImage], plus: Path | None, notes: Notes) -> tuple[EvalImage, ...]:
    """Add findings and impression of CheXpert Plus, where its table is given."""
    if plus is None:
        return tuple(images)
    kind = "CheXpert Plus table"
    table = read_table(plus, ["path_to_image", "section_findings", "section_impression"], kind=kind)
    wanted = {one.id for one in images}
    rows = table[table["path_to_image"].str.strip().map(without_release).isin(wanted)]
    reports = {
        without_release(path): " ".join(f"{findings} {impression}".split())
        for path, findings, impression in rows.itertuples(index=False, name=None)
    }
    notes["images without a report in CheXpert Plus"] += sum(not reports.get(one.id) for one in images)
    return tuple(replace(one, report=reports.get(one.id, "")) for one in images)
