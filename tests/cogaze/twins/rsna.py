"""RSNA Pneumonia Detection, stage 2, as a twin."""

import uuid
from random import Random

from twins.pictures import SIZE, pixels, write_dicom
from twins.tables import benchx_parts, write_lists, write_rows

BOXES_OF = {0: 1, 1: 2, 2: 4, 3: 1}  # of every fifth patient, how many boxes
AGES = ("51", "7", "", "155")


def write_rsna(root, lists, patients=40):
    """Write a release and BenchX's lists; every fifth patient of 10 has the class of an ill one without opacity.

    Returns the patients' ids in order. Boxes lie in the pictures of 32 x 24 px, which are 1024 x 1024 in the original.
    """
    random = Random(0)
    ids = [str(uuid.UUID(int=random.getrandbits(128), version=4)) for _ in range(patients)]
    labels, classes = [], []
    for number, one in enumerate(ids):
        boxes = BOXES_OF[number // 5 % 4] if number % 5 == 0 else 0
        rows = [box(number + i) for i in range(boxes)] or [",,,"]
        labels += [f"{one},{row},{int(boxes > 0)}" for row in rows]
        other = "No Lung Opacity / Not Normal" if number % 2 else "Normal"
        classes += [f"{one},{'Lung Opacity' if boxes else other}" for _ in rows]
        write_dicom(
            root / "stage_2_train_images" / f"{one}.dcm",
            pixels(number),
            PatientID=one,
            PatientAge=AGES[number % 4],
            PatientSex="MF"[number % 2],
            ViewPosition=("PA", "AP")[number % 2],
        )
    write_rows(root / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", labels)
    write_rows(root / "stage_2_detailed_class_info.csv", "patientId,class", classes)
    unlabelled = str(uuid.UUID(int=random.getrandbits(128), version=4))
    write_dicom(root / "stage_2_test_images" / f"{unlabelled}.dcm", pixels(patients), PatientAge="40")
    write_rows(root / "stage_2_sample_submission.csv", "patientId,PredictionString", [f"{unlabelled},0.5 0 0 100 100"])
    write_lists(lists, **benchx_parts(ids))
    return ids


def box(seed):
    """x, y, width, height as floats, all within the picture."""
    random = Random(seed)
    x, y = random.randint(0, SIZE[0] // 2), random.randint(0, SIZE[1] // 2)
    return f"{x}.0,{y}.0,{random.randint(3, SIZE[0] // 2)}.0,{random.randint(3, SIZE[1] // 2)}.0"
