"""CheXpert as a twin: train.csv with images of one finding alone and traps, valid.csv, the test release, lists."""

from twins.pictures import pixels, write_picture
from twins.tables import write_rows

FINDINGS = [
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
]
HEADER = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{','.join(FINDINGS)}"
ALONE = (
    "No Finding",
    "Cardiomegaly",
    "Edema",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Fracture",
    "Consolidation",
)
# Images that are in no pool, by what keeps them out.
TRAPS = {
    "another uncertain": ({"Edema": "1.0", "Pneumonia": "-1.0"}, "Frontal"),
    "itself uncertain": ({"Edema": "-1.0"}, "Frontal"),
    "a lateral": ({"Edema": "1.0"}, "Lateral"),
    "two": ({"Edema": "1.0", "Support Devices": "1.0"}, "Frontal"),
    "nothing": ({}, "Frontal"),
}


def rows_of_train(per_class):
    """Return (labels, view) of each image: those of one finding alone, some absent told and some not, and the traps."""
    rows = []
    for number in range(per_class):
        for one in ALONE:
            told = {"Fracture": "0.0"} if number % 2 and one != "Fracture" else {}
            rows.append(({**told, one: "1.0"}, "Frontal"))
    return rows + list(TRAPS.values()) * 2


def line(path, labels, view, number):
    sex = ("Male", "Female", "Unknown")[number % 3 if number < 3 else number % 2]
    ap_pa = "" if view == "Lateral" else ("AP", "PA")[number % 2]
    return ",".join([path, sex, str(number % 91), view, ap_pa, *(labels.get(one, "") for one in FINDINGS)])


def write_chexpert(root, per_class=6, prefix="CheXpert-v1.0-small"):
    """Write the release; each two images of train are one patient's, and so are the two views of a test study."""
    train = []
    for number, (labels, view) in enumerate(rows_of_train(per_class)):
        path = f"train/patient{number // 2 + 1:05d}/study{number % 2 + 1}/view1_{view.lower()}.jpg"
        train.append(line(f"{prefix}/{path}", labels, view, number))
        write_picture(root / path, pixels(number % 7))
    write_rows(root / "train.csv", HEADER, train)
    valid, test = [], []
    for number in range(8):
        labels = {one: "1.0" if (number + place) % 3 == 0 else "0.0" for place, one in enumerate(FINDINGS)}
        for view in ("Frontal", "Lateral") if number == 0 else ("Frontal",):
            path = f"valid/patient{64541 + number}/study1/view{1 + (view == 'Lateral')}_{view.lower()}.jpg"
            valid.append(line(f"{prefix}/{path}", labels, view, number))
            write_picture(root / path, pixels(number % 7))
        study = f"test/patient{64741 + number}/study1"
        test.append(",".join([f"CheXpert-v1.0/{study}", *(labels[one][0] for one in FINDINGS)]))
        for view in ("view1_frontal", "view2_lateral" if number % 2 else "view2_frontal"):
            write_picture(root / study / f"{view}.jpg", pixels(number % 7))
    write_rows(root / "valid.csv", HEADER, valid)
    write_rows(root / "groundtruth.csv", f"Study,{','.join(FINDINGS)}", test)


def write_convirt(folder, per_class=4, queries=2):
    """Write ConVIRT's folder, in which text-retrieval/candidate.csv is missing; of each class the first are queries."""
    candidates, asked, texts = [], [], []
    for place, one in enumerate(ALONE[:8]):
        for number in range(per_class + queries):
            position = number * len(ALONE) + place
            path = f"CheXpert-v1.0-small/train/patient{position // 2 + 1:05d}/study{position % 2 + 1}/view1_frontal.jpg"
            if number < queries:
                asked.append(f"{one},{path}")
            else:
                labels = {finding: "1.0" if finding == one else "0.0" for finding in FINDINGS}
                candidates.append(line(path, labels, "Frontal", position))
        texts += [f'{one},"There is {one.lower()}, form {number}."' for number in range(5)]
    write_rows(folder / "image-retrieval/candidate.csv", HEADER, candidates)
    write_rows(folder / "image-retrieval/query.csv", "Variable,Path", asked)
    write_rows(folder / "text-retrieval/query.csv", "Variable,Text", texts)
