"""SIIM-ACR Pneumothorax as a twin: the DICOM tree of stage 1, the PNG release, and the three tables of run lengths."""

from random import Random

import numpy as np

from twins.pictures import SIZE, pixels, write_dicom, write_picture
from twins.tables import write_lists, write_rows

ROOT_UID = "1.2.276.0.7230010.3.1"
VARIANTS = {
    "first": ("train-rle.csv", "ImageId, EncodedPixels", " -1", " "),
    "torrent": ("train-rle.csv", "ImageId, EncodedPixels", "-1", ""),
    "stage 2": ("stage_2_train.csv", "ImageId,EncodedPixels", "-1", ""),
}


def cast():
    """Ids, parts, names and masks of 24 images, as dicts; train and test names are numbered from 0 each."""
    images = []
    for part, count in (("train", 16), ("test", 8)):
        for index in range(count):
            # Every second image has a finding, in 1, 2 or 3 rows.
            rows = index // 2 % 3 + 1 if index % 2 else 0
            # The tables list images in another order than the names.
            images.append(
                {
                    "id": f"{ROOT_UID}.4.8323329.{7 * len(images) % 24 + 300}.1517874291.{len(images) + 400}",
                    "part": part,
                    "name": f"{index}_{part}_{int(rows > 0)}_",
                    "masks": [rectangle(10 * len(images) + row) for row in range(rows)],
                }
            )
    return images


def rectangle(seed):
    """A mask (rows, cols) of a picture that is not square."""
    random = Random(seed)
    mask = np.zeros(SIZE[::-1], dtype=bool)
    row, column = random.randint(0, SIZE[1] - 9), random.randint(0, SIZE[0] // 2)
    mask[row : row + random.randint(2, 8), column : column + random.randint(2, 14)] = True
    return mask


def runs(mask):
    """Walk over all pixels, down each column."""
    values, gap, length = [], 0, 0
    for pixel in [*mask.T.reshape(-1), False]:
        if pixel:
            length += 1
        elif length:
            values += [gap, length]
            gap, length = 1, 0
        else:
            gap += 1
    return " ".join(map(str, values))


def write_tables(root, images, variant):
    """One row a lesion; the rows of an image are not adjacent."""
    file, header, none, before = VARIANTS[variant]
    first = [
        f"{one['id']},{before}{runs(one['masks'][0])}" if one["masks"] else f"{one['id']},{none}" for one in images
    ]
    more = [f"{one['id']},{before}{runs(mask)}" for one in images for mask in one["masks"][1:]]
    write_rows(root / file, header, [*first, *reversed(more)])


def write_names(root, images):
    for part in ("train", "test"):
        rows = [f"{one['name']}.png,{one['id']},{int(bool(one['masks']))}" for one in images if one["part"] == part]
        write_rows(root / f"stage_1_{part}_images.csv", "new_filename,ImageId,has_pneumo", rows)


def write_dicom_tree(root, images, variant="stage 2"):
    for number, one in enumerate(images):
        *_, a, b, c = one["id"].split(".")
        study = f"{ROOT_UID}.2.8323329.{a}.{b}.{int(c) - 1}"
        series = f"{ROOT_UID}.3.8323329.{a}.{b}.{int(c) - 2}"
        path = root / f"dicom-images-{one['part']}" / study / series / f"{one['id']}.dcm"
        tags = {
            "PatientAge": str(30 + number),
            "PatientSex": "MF"[number % 2],
            "ViewPosition": ("PA", "AP")[number % 2],
        }
        write_dicom(path, pixels(number), uid=one["id"], **tags)
    write_tables(root, images, variant)


def write_png_tree(root, images):
    for number, one in enumerate(images):
        write_picture(root / "png_images" / f"{one['name']}.png", pixels(number))
        mask = np.any(one["masks"], axis=0) if one["masks"] else np.zeros(SIZE[::-1], dtype=bool)
        write_picture(root / "png_masks" / f"{one['name']}.png", 255 * mask.astype(np.uint8))
    write_names(root, images)


def write_benchx(folder, images):
    """Test is the vendor's, so that all its numbers are those of train or val images too."""
    train = [one["name"] for one in images if one["part"] == "train"]
    test = [one["name"] for one in images if one["part"] == "test"]
    write_lists(folder, train=train[:12], train_1=train[:2], train_10=train[:4], val=train[12:], test=test)
