"""NIH ChestX-ray14 as a twin: both generations of its table, in folders or flat, all kinds of lists."""

import cv2
import numpy as np

from twins.pictures import pixels, write_picture
from twins.tables import write_lists, write_rows

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
FINDINGS = (
    "No Finding",
    "Effusion|Atelectasis",  # 51 rows of the original are not alphabetical
    "Infiltration",
    "No Finding",
    "Pleural_Thickening",
    "Hernia|Mass|Nodule",
)
ORDER = """
Atelectasis Cardiomegaly Effusion Infiltration Mass Nodule Pneumonia Pneumothorax Consolidation Edema Emphysema Fibrosis
Pleural_Thickening Hernia
"""
PATIENTS, IMAGES_OF = 15, 2


def cast():
    """File names, findings and patients; the follow-up number is not the one in the name."""
    names = [f"{patient:08d}_{image:03d}.png" for patient in range(1, PATIENTS + 1) for image in range(IMAGES_OF)]
    return {
        name: {"findings": FINDINGS[number % 6], "patient": int(name[:8]), "follow_up": 0 if number % 3 else 4}
        for number, name in enumerate(names)
    }


def write_nih(root, form="kaggle", generation="v2020"):
    """Write a release: `form` kaggle, flat or root; `generation` v2020 or first."""
    images = cast()
    rows = []
    for number, (name, one) in enumerate(images.items()):
        age = f"{40 + one['patient']:03d}Y" if generation == "first" else str(40 + one["patient"])
        end = "," if generation == "first" else ""
        rows.append(
            f"{name},{one['findings']},{one['follow_up']},{one['patient']},{age},{'MF'[number % 2]},"
            f"{('PA', 'AP')[number % 2]},2682,2749,0.143,0.143{end}"
        )
        folder = {"kaggle": f"images_{number % 2 + 1:03d}/images", "flat": "images", "root": "."}[form]
        image = pixels(number)
        if number == 4:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGRA)
        write_picture(root / folder / name, image)
    if generation == "first":
        write_rows(root / "Data_Entry_2017.csv", f"{HEADER},", rows)
    else:
        write_rows(root / "Data_Entry_2017_v2020.csv", HEADER, rows)
    write_rows(
        root / "BBox_List_2017.csv",
        BOX_HEADER,
        ["00000001_001.png,Atelectasis,256.0,512.0,128.5,64.0", "00000002_000.png,Infiltrate,0.0,0.0,1024.0,1024.0"],
    )
    return images


def parts():
    """File names of train, val and test, by patient."""
    names = list(cast())
    return {"train": names[:20], "train_1": names[:1], "train_10": names[2:5], "val": names[20:24], "test": names[24:]}


def write_official(folder):
    by_part = parts()
    write_rows(folder / "train_val_list.txt", by_part["train"][0], [*by_part["train"][1:], *by_part["val"]])
    write_rows(folder / "test_list.txt", by_part["test"][0], by_part["test"][1:])


def write_benchx(folder):
    write_lists(folder, **parts())


def write_chexnet(folder, wrong=1):
    """Write lists of a name and 14 labels, of which `wrong` test images have others than the table."""
    order = ORDER.split()
    images = cast()
    for part in ("train", "val", "test"):
        lines = []
        for number, name in enumerate(parts()[part]):
            labels = np.array([one in images[name]["findings"].split("|") for one in order]).astype(int)
            if part == "test" and number < wrong:
                labels = 1 - labels
            lines.append(" ".join([name, *map(str, labels)]))
        write_rows(folder / f"{part}_list.txt", lines[0], lines[1:])
