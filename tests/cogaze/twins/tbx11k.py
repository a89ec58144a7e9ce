"""TBX11K as a twin, in the simplified form of one table and in its authors' own."""

import json

import cv2

from twins.pictures import SIZE, pixels, write_picture
from twins.tables import benchx_parts, write_lists, write_rows

HEADER = "fname,image_height,image_width,source,bbox,target,tb_type,image_type"
BOXES = {
    "tb0001": [(9.5, 7.2, 8.0, 11.4), (20.0, 3.0, 6.5, 9.0)],
    "tb0002": [(1.0, 2.0, 10.0, 12.0)],
    "tb0003": [(0.0, 0.0, 32.0, 24.0)],
    "tb0004": [(3.0, 3.0, 9.0, 9.0)],
    "tb0005": [(12.5, 4.0, 9.0, 18.0)],
    "tb0006": [(2.0, 8.0, 7.5, 7.5)],
}
LATENT = "tb0003"


def cast():
    """Names without ending, and the official part of each; every third is tuberculosis."""
    names = [f"{kind}{number:04d}" for number in range(1, 7) for kind in ("h", "s", "tb")]
    return {name: "val" if number > 11 else "train" for number, name in enumerate(names)}


def write_simplified(root):
    """Write data.csv with a row for each box, RGB pictures, and an unlabelled test picture."""
    height, width = SIZE[1], SIZE[0]
    rows = []
    for number, (name, source) in enumerate(cast().items()):
        kind = {"h": "healthy", "s": "sick_but_no_tb", "t": "tb"}[name[0]]
        tb_type = "none" if kind != "tb" else "latent_tb" if name == LATENT else "active_tb"
        for x, y, w, h in BOXES.get(name, [(None,) * 4]):
            box = "none" if x is None else f"\"{{'xmin': {x}, 'ymin': {y}, 'width': {w}, 'height': {h}}}\""
            target = "tb" if kind == "tb" else "no_tb"
            rows.append(f"{name}.png,{height},{width},{source},{box},{target},{tb_type},{kind}")
        write_picture(root / "images" / f"{name}.png", cv2.cvtColor(pixels(number), cv2.COLOR_GRAY2BGR))
    write_rows(root / "data.csv", HEADER, rows)
    write_picture(root / "test" / "unknown_0001.png", pixels(99))


def write_lists_of(folder):
    write_lists(folder, **benchx_parts(list(cast())))


def write_full(root):
    """Write imgs/ and COCO's json, and a picture of another dataset in extra/."""
    names = {"ActiveTuberculosis": 1, "ObsoletePulmonaryTuberculosis": 2, "PulmonaryTuberculosis": 3}
    categories = [{"id": number, "name": name, "supercategory": "Tuberculosis"} for name, number in names.items()]
    folders = {"h": "health", "s": "sick", "t": "tb"}
    for part in ("train", "val"):
        images, annotations = [], []
        for number, (name, source) in enumerate(cast().items(), start=1):
            path = f"{folders[name[0]]}/{name}.png"
            write_picture(root / "imgs" / path, pixels(number))
            if source == part:
                images.append({"id": number, "file_name": path, "width": SIZE[0], "height": SIZE[1]})
                for box in BOXES.get(name, []):
                    category = 2 if name == LATENT else 1
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": box}
                    )
        told = {"images": images, "annotations": annotations, "categories": categories}
        path = root / "annotations" / "json" / f"TBX11K_{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told))
    write_picture(root / "imgs" / "extra" / "CHNCXR_0001_0.png", pixels(98))
