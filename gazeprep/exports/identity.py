"""What exported samples are called: pseudonyms by default, the source's own ids where the user asks for them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gazeprep.shards import sample_key

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")  # of a source id that becomes a file's name
DIGITS = re.compile(r"\d{3,}")


@dataclass(frozen=True)
class Identity:
    """A sample's names outside its shards. Equal images, studies and subjects have equal names.

    image_name and reading_name are relative paths without a suffix: one for each image, one for each sample.
    """

    image_id: str
    study_id: str
    subject_id: str
    image_name: str
    reading_name: str


def identity_of(record: Mapping[str, Any], *, source_ids: bool) -> Identity:
    """Name a sample by its record (<key>.json); without a study or subject, its key stands in."""
    return _from_source(record) if source_ids else _pseudonyms(record)


def _pseudonyms(record: Mapping[str, Any]) -> Identity:
    """REFLACX and EGD-CXR have MIMIC's images, studies and subjects; a table's are its own."""
    dataset, key = str(record["dataset"]), str(record["key"])
    owner = dataset if dataset.startswith("table-") else "mimic"

    def name(kind: str) -> str:
        source_id = record[f"{kind}_id"]
        return sample_key(kind, f"{owner}\0{source_id}" if source_id else key)

    image = name("dicom")
    return Identity(image, name("study"), name("subject"), image, key)


def _from_source(record: Mapping[str, Any]) -> Identity:
    key, dicom, reading = str(record["key"]), str(record["dicom_id"]), str(record["reading_id"])
    study, subject = str(record["study_id"]), str(record["subject_id"])
    image, read = key, key
    if not str(record["dataset"]).startswith("table-") and SAFE_NAME.fullmatch(dicom):
        read = dicom if reading in ("", dicom) or not SAFE_NAME.fullmatch(reading) else f"{dicom}_{reading}"
        if DIGITS.fullmatch(study) and DIGITS.fullmatch(subject):  # where MIMIC-CXR-JPG has it, below files/
            image = f"p{subject[:2]}/p{subject}/s{study}/{dicom}"
    return Identity(dicom, study or key, subject or key, image, read)
