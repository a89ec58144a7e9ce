"""The Shenzhen set as a twin: free text in all its forms, colour and other sizes, Thumbs.db."""

import cv2

from twins.pictures import pixels, write_picture

# First line, then the reading; what they say of sex and age.
TEXTS = {
    "CHNCXR_0001_0": ("male 45yrs\nnormal", "M", 45),
    "CHNCXR_0002_0": ("female, 33yrs\nnormal\n\n\n", "F", 33),
    "CHNCXR_0003_0": ("Male  4months\nNormal", "M", 0),
    "CHNCXR_0004_0": ("Femal 26 yrs\nnormal", "F", 26),
    "CHNCXR_0005_0": ("female\nnormal", "F", None),
    "CHNCXR_0006_0": ("male 61\nnormal", "M", 61),
    "CHNCXR_0327_1": ("male 20days\nright PTB", "M", 0),
    "CHNCXR_0328_1": ("FEMALE 70YRS\nbilateral STB\nleft pleuritis", "F", 70),
    "CHNCXR_0329_1": ("fmale 18 months\nleft PTB", "F", 1),
    "CHNCXR_0330_1": ("male, 41yr\nnormal", "M", 41),  # against its name
}
LISTS = {
    "train": ["CHNCXR_0001_0", "CHNCXR_0002_0", "CHNCXR_0003_0", "CHNCXR_0327_1", "CHNCXR_0328_1"],
    "val": ["CHNCXR_0004_0", "CHNCXR_0329_1"],
    "test": ["CHNCXR_0005_0", "CHNCXR_0006_0", "CHNCXR_0330_1"],
}


def write_shenzhen(root, lists):
    folder = root / "ChinaSet_AllFiles"
    for number, (name, (text, _, _)) in enumerate(TEXTS.items()):
        image = pixels(number, (32, 40) if number == 1 else (36, 24))
        write_picture(
            folder / "CXR_png" / f"{name}.png", cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if number == 0 else image
        )
        (folder / "ClinicalReadings").mkdir(exist_ok=True)
        (folder / "ClinicalReadings" / f"{name}.txt").write_text(text)
    for place in ("CXR_png", "ClinicalReadings"):
        (folder / place / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / "NLM-ChinaCXRSet-ReadMe.docx").write_bytes(b"PK")
    lists.mkdir()
    for part, names in LISTS.items():
        (lists / f"{part}.txt").write_text("".join(f"{name}.png,{name[-1]}\n" for name in names))
