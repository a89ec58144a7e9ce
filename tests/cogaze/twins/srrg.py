"""SRRG as a twin: reports of synthetic studies, their sentences below organs by a few words, with rows of no use."""

import re

import pyarrow as pa
import pyarrow.parquet as pq

FIELDS = (
    "original_report",
    "structured_report",
    "findings_section",
    "impression_section",
    "history_section",
    "technique_section",
    "comparison_section",
    "exam_type_section",
)
SCHEMA = pa.schema(
    [*((name, pa.string()) for name in FIELDS), ("image_paths", pa.list_(pa.string())), ("id", pa.string())]
)
# The first that a sentence has a word of; the order decides, as for "left lung pneumothorax".
WORDS = {
    "Tubes, Catheters, and Support Devices": "tube|jugular|catheter|pacemaker",
    "Pleura": "pleural|effusion|pneumothorax|costophrenic|apex|apices",
    "Cardiovascular": "heart|cardiac|cardiomegaly|aort|vasculature",
    "Hila and Mediastinum": "hila|hilar|mediastin|trachea",
    "Musculoskeletal and Chest Wall": "fracture|rib|osseous",
    "Abdominal": "diaphragm|hemidiaphragm|free air",
    "Lungs and Airways": "lung|pulmonary|consolidation|opacity|atelectasis|edema|nodule|mass|airspace",
}


def sentences(text):
    return [one.strip() for one in re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(text.split())) if one.strip()]


def organ_of(sentence):
    found = (organ for organ, words in WORDS.items() if re.search(rf"\b({words})", sentence, re.IGNORECASE))
    return next(found, "Other")


def structured_findings(text):
    """Sort sentences below headings, in the order in which the report comes to them."""
    organs = {}
    for sentence in sentences(text):
        organs.setdefault(organ_of(sentence), []).append(sentence)
    return "\n\n".join("\n".join([f"{organ}:", *(f"- {one}" for one in said)]) for organ, said in organs.items())


def structured_impression(text):
    plain = [re.sub(r"^\d+\.\s+", "", one) for one in re.split(r"\s(?=\d+\. )", " ".join(text.split())) if one]
    return "\n".join(f"{number}. {one}" for number, one in enumerate(plain, start=1))


def row_of(record):
    """Put a shard's record, of MIMIC-CXR's sections, into a row of SRRG."""
    subject, study = record["subject_id"], record["study_id"]
    findings, impression = structured_findings(record["findings"]), structured_impression(record["impression"])
    return {
        "original_report": f"FINDINGS: {record['findings']} IMPRESSION: {record['impression']}",
        "structured_report": f"Exam Type: Chest radiograph\n\nFindings:\n{findings}\n\nImpression:\n{impression}",
        "findings_section": findings,
        "impression_section": impression,
        "history_section": record["indication"],
        "technique_section": None,
        "comparison_section": None,
        "exam_type_section": "Chest radiograph",
        "image_paths": [f"files/p{subject[:2]}/p{subject}/s{study}/{record['dicom_id']}.jpg"],
        "id": f"mimic-{study}",
    }


def chexpert_row(number):
    blank = dict.fromkeys(FIELDS, "Lungs and Airways:\n- Invented.")
    return {
        **blank,
        "image_paths": [f"train/patient{number:05d}/study1/view1_frontal.png"],
        "id": f"chexpert-{number}",
    }


def write_srrg(root, records, extra=()):
    """Write data/<split>-00000-of-00001.parquet of the records' studies, once each; extra: (split, row) to go with."""
    rows = {split: [] for split in ("train", "validate", "test", "test_reviewed")}
    for study in {record["study_id"]: record for record in records if record["study_id"]}.values():
        rows[study["split"]].append(row_of(study))
    for split, row in extra:
        rows[split].append(row)
    for split, some in rows.items():
        write_part(root, split, some)


def write_part(root, split, rows, number=0, of=1):
    (root / "data").mkdir(parents=True, exist_ok=True)
    path = root / "data" / f"{split}-{number:05d}-of-{of:05d}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    return path
