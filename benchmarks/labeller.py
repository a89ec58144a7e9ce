"""Rule-based labels against what people coded: python benchmarks/labeller.py --wheel torchxrayvision-1.5.7-*.whl.

The wheel (pip download --no-deps torchxrayvision==1.5.7) carries Open-i's 3,955 reports, CC BY-NC-ND: they are read,
not kept. People coded each with MeSH terms (`MeSH/major`), which CODED maps to CheXpert's labels. The rules were
written looking at the half "development" alone; figures to quote are of "held-out". Beside them: the same words
without negation and doubt, every mention a positive.
"""

import argparse
import hashlib
import io
import tarfile
import time
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cogaze.evaluate.metrics import FloatArray
from cogaze.evaluate.reports.label_f1 import MEASURES, RULES, Cells, IntArray, macro, micro
from cogaze.evaluate.reports.labeller import NOT_A_DISEASE, codes_of
from cogaze.evaluate.results import Figure
from cogaze.evaluate.scores import Intervals
from gazeprep.schema import CHEXPERT_LABELS, LABEL_ABSENT, BoolArray
from gazeprep.sources.open_files import REPORTS_IN_WHEEL, openi_context

NOT_CODED = "No Indexing"


@dataclass(frozen=True)
class Code:
    """A coded term: its heading, and the qualifiers of which one must be there; "" for none."""

    heading: str
    qualifiers: str = ""

    def fits(self, term: str) -> bool:
        """Whether a term such as Opacity/lung/base/left is this one."""
        heading, *qualifiers = (part.strip().lower() for part in term.split("/"))
        return heading == self.heading and (
            not self.qualifiers or bool(set(self.qualifiers.split("|")) & set(qualifiers))
        )


# Coders write "round" of what is nodular. Granulomas, scars, calcifications and deformities are no label of CheXpert's.
CODED = {
    "Atelectasis": (Code("pulmonary atelectasis"),),
    "Cardiomegaly": (Code("cardiomegaly"), Code("cardiac shadow", "enlarged")),
    "Consolidation": (Code("consolidation"),),
    "Edema": (Code("pulmonary edema"), Code("pulmonary congestion"), Code("heart failure")),
    "Enlarged Cardiomediastinum": (Code("mediastinum", "prominent|enlarged"),),
    "Fracture": (Code("fractures, bone"),),
    "Lung Lesion": (
        Code("nodule"),
        Code("mass"),
        Code("cavitation"),
        *(Code(heading, "round") for heading in ("opacity", "density", "infiltrate")),
    ),
    "Lung Opacity": (
        Code("opacity"),
        Code("airspace disease"),
        Code("infiltrate"),
        Code("density", "lung"),
        Code("lung diseases, interstitial"),
        Code("markings", "interstitial|reticular"),
    ),
    "Pleural Effusion": (Code("pleural effusion"), *map(Code, ("hydropneumothorax", "hemothorax", "hemopneumothorax"))),
    "Pleural Other": (Code("thickening", "pleura"),),
    "Pneumonia": (Code("pneumonia"),),
    "Pneumothorax": (Code("pneumothorax"), Code("hydropneumothorax"), Code("hemopneumothorax")),
    "Support Devices": tuple(
        map(Code, ("catheters, indwelling", "implanted medical device", "medical device", "tube, inserted", "stents"))
    ),
}


@dataclass(frozen=True)
class Coded:
    """A report's id, its findings and impression, and the terms that people gave it."""

    report_id: str
    text: str
    terms: tuple[str, ...]

    @property
    def half(self) -> str:
        """Which half it is of, by a hash of its id."""
        return "held-out" if int(hashlib.sha256(self.report_id.encode()).hexdigest(), 16) % 2 else "development"

    @property
    def usable(self) -> bool:
        """Whether it has text and was coded."""
        return bool(self.text) and bool(set(self.terms) - {NOT_CODED})

    def labels(self) -> set[str]:
        """Return the labels that the terms stand for; No Finding as CheXpert has it: none but devices."""
        found = {label for label, codes in CODED.items() if any(one.fits(term) for one in codes for term in self.terms)}
        return found if found - set(NOT_A_DISEASE) else found | {"No Finding"}


def coded_reports(wheel: Path) -> Iterator[Coded]:
    """Read the reports in the order of the archive."""
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.read(REPORTS_IN_WHEEL)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".xml") else None
            if file is None:
                continue
            xml = file.read()
            sections, root = openi_context(xml), ET.fromstring(xml)
            terms = tuple((element.text or "").strip() for element in root.iter("major"))
            text = f"{sections.findings} {sections.impression}".strip()
            named = root.find("uId")
            assert named is not None
            yield Coded(named.attrib["id"], text, terms)


@dataclass(frozen=True)
class Row:
    """Precision, recall and F1 of one label, or of several together, with the interval of F1."""

    precision: float
    recall: float
    f1: Figure

    def between(self) -> str:
        """Return F1 with its interval."""
        bounds = f"{self.f1.low:.3f} to {self.f1.high:.3f}" if self.f1.low is not None else self.f1.why
        return f"{self.f1.value:.3f} ({bounds})"


def rows_of(coded: BoolArray, said: BoolArray, intervals: Intervals) -> dict[str, Row]:
    """Compare what people coded (N, 14) with what is said: a row for each label, then micro and macro."""
    cells = Cells.of(coded, said)
    labels = {label: row_of(micro, cells.columns([place]), intervals) for place, label in enumerate(CHEXPERT_LABELS)}
    return labels | {"micro": row_of(micro, cells, intervals), "macro": row_of(macro, cells, intervals)}


def row_of(over: Callable[..., FloatArray], cells: Cells, intervals: Intervals) -> Row:
    """Sum or average some labels' figures."""
    count = len(cells.both)
    values = {name: float(over(measure, cells.drawn(np.ones((1, count))))[0]) for name, measure in MEASURES.items()}
    f1 = intervals.figure_of_counts(
        "F1", values["F1"], lambda counts: over(Cells.f1, cells.drawn(counts)), np.arange(count), {}
    )
    return Row(values["precision"], values["recall"], f1)


def every_mention(codes: IntArray) -> BoolArray:
    """Read codes (N, 14) as if negation and doubt were not heard: whatever is named is there."""
    said = codes != LABEL_ABSENT
    diseases = [place for place, label in enumerate(CHEXPERT_LABELS) if label not in NOT_A_DISEASE]
    said[:, CHEXPERT_LABELS.index("No Finding")] = ~said[:, diseases].any(axis=1)
    return said


def main() -> None:
    """Label, compare, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--half", choices=("held-out", "development"), default="held-out")
    parser.add_argument("--repeats", type=int, default=1000)
    options = parser.parse_args()
    every = list(coded_reports(options.wheel))
    used = [one for one in every if one.usable and one.half == options.half]
    started = time.perf_counter()
    codes = codes_of([one.text for one in used])
    speed = len(used) / (time.perf_counter() - started)
    coded = np.array([[label in one.labels() for label in CHEXPERT_LABELS] for one in used])
    ways = {name: np.isin(codes, RULES[name].yes) for name in ("uncertain is yes", "uncertain is no")}
    ways["every mention is yes"] = every_mention(codes)
    tables = [rows_of(coded, said, Intervals(options.repeats)) for said in ways.values()]
    print(f"{len(every)} reports, {len(used)} of the half {options.half} with text and terms; {speed:.0f} a second\n")
    titles = [f"{kind}, {name}" for name in ways for kind in ("precision", "recall", "F1 (95 %)")]
    print(f"| label | coded | {' | '.join(titles)} |\n|{'---|' * (len(titles) + 2)}")
    for label in tables[0]:
        count = int(coded[:, CHEXPERT_LABELS.index(label)].sum()) if label in CHEXPERT_LABELS else ""
        rows = (table[label] for table in tables)
        cells = (f"{row.precision:.3f} | {row.recall:.3f} | {row.between()}" for row in rows)
        print(f"| {label} | {count} | {' | '.join(cells)} |")
    normal = np.array([["normal" in one.terms] for one in used])
    row = row_of(
        micro, Cells.of(normal, codes[:, [CHEXPERT_LABELS.index("No Finding")]] == 1), Intervals(options.repeats)
    )
    print(f"\nNo Finding against the term `normal` ({normal.sum()} coded), which old and bony findings exclude too:")
    print(f"precision {row.precision:.3f}, recall {row.recall:.3f}, F1 {row.between()}")


if __name__ == "__main__":
    main()
