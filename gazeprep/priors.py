"""Which study of a subject was the last one before another, by date and time."""

from dataclasses import dataclass

import pandas as pd

DAY_MS = 86_400_000
STUDY = ["subject_id", "study_id"]

StudyOf = tuple[str, str]  # subject and study: so that nobody gets another person's


@dataclass(frozen=True, slots=True)
class EarlierStudy:
    """A study of the same subject, and how many days before it began."""

    study_id: str
    days: float


@dataclass(frozen=True, eq=False)
class Priors:
    """The last study before each, by subject and study; and which studies cannot have one.

    undated: those without date or time. tied: those before which several began last, at the same time.
    """

    of_study: dict[StudyOf, EarlierStudy]
    undated: frozenset[StudyOf]
    tied: frozenset[StudyOf]


def last_before(images: pd.DataFrame) -> Priors:
    """Find the last study before each in a table of images: `subject_id`, `study_id`, `began_ms` (NaN: not known).

    A study begins with its first image. Of studies that begin at the same time none is before the other.
    """
    dated = images.dropna(subset="began_ms").sort_values(["subject_id", "began_ms", "study_id"])
    studies = dated.drop_duplicates(STUDY)
    moments = studies.groupby(["subject_id", "began_ms"], sort=False).agg(
        studies=("study_id", "size"), study_id=("study_id", "first")
    )
    moments = moments.reset_index()
    before = moments.groupby("subject_id", sort=False).shift(1).add_suffix("_before")
    found = studies.merge(moments[["subject_id", "began_ms"]].join(before), on=["subject_id", "began_ms"])
    alone = found["studies_before"] == 1
    last = found[alone]
    days = (last["began_ms"] - last["began_ms_before"]) / DAY_MS
    earlier = map(EarlierStudy, last["study_id_before"].tolist(), days.tolist())
    return Priors(
        of_study=dict(zip(_ids(last), earlier, strict=True)),
        undated=frozenset(_ids(images.drop_duplicates(STUDY))) - frozenset(_ids(studies)),
        tied=frozenset(_ids(found[found["studies_before"] > 1])),
    )


def _ids(studies: pd.DataFrame) -> list[StudyOf]:
    return list(zip(studies["subject_id"].tolist(), studies["study_id"].tolist(), strict=True))
