"""MIMIC-CXR-JPG with reports as a twin: studies of one finding alone, and what keeps others out."""

from twins.pictures import pixels, write_picture
from twins.tables import write_rows

LABELS = [
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
]
FIVE = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]
SPLITS = ("train", "validate", "test")


def cast(per_class):
    """Return (labels, view, what for) of each study's one image."""
    studies = [({one: "1.0", "Fracture": "0.0"}, "PA", "pool") for _ in range(per_class) for one in FIVE]
    return [
        *studies,
        ({"Edema": "1.0", "Pneumonia": "-1.0"}, "AP", "uncertain"),
        ({"Edema": "1.0"}, "LATERAL", "lateral"),
        ({"Edema": "1.0", "Pneumonia": "1.0"}, "AP", "two"),
        ({"Edema": "1.0"}, "AP", "no report"),
        ({"Edema": "1.0"}, "AP", "no picture"),
    ]


def write_mimic(root, per_class=3):
    """Write tables, pictures and reports; of NegBio's labels the first study has none. Returns dicom ids and why."""
    metadata, chexpert, negbio, splits, why = [], [], [], [], {}
    for number, (labels, view, reason) in enumerate(cast(per_class)):
        subject, study = 10000001 + number // 2, 50000001 + number
        dicom = f"{number:08x}-0a0b0c0d-0e0f0a0b-0c0d0e0f-0a0b0c0d"
        why[dicom] = reason
        metadata.append(f"{dicom},{subject},{study},{view},24,32")
        chexpert.append(",".join([str(subject), str(study), *(labels.get(one, "") for one in LABELS)]))
        negbio.append(
            ",".join([str(subject), str(study), *("" if not number else labels.get(one, "") for one in LABELS)])
        )
        splits.append(f"{dicom},{study},{subject},{SPLITS[number // 2 % 3]}")
        folder = root / "files" / f"p{str(subject)[:2]}" / f"p{subject}"
        if reason != "no picture":
            write_picture(folder / f"s{study}" / f"{dicom}.jpg", pixels(number))
        if reason != "no report":
            folder.mkdir(parents=True, exist_ok=True)
            text = f" FINAL REPORT\n FINDINGS:\n Study number {number}.\n \n IMPRESSION:\n Invented.\n"
            (folder / f"s{study}.txt").write_text(text)
    write_rows(
        root / "mimic-cxr-2.0.0-metadata.csv", "dicom_id,subject_id,study_id,ViewPosition,Rows,Columns", metadata
    )
    write_rows(root / "mimic-cxr-2.0.0-split.csv", "dicom_id,study_id,subject_id,split", splits)
    for name, rows in (("chexpert", chexpert), ("negbio", negbio)):
        write_rows(root / f"mimic-cxr-2.0.0-{name}.csv", f"subject_id,study_id,{','.join(LABELS)}", rows)
    return why
