"""COVIDx CXR-4 as a twin: lists without a header, names with spaces, the typo in a source."""

from twins.pictures import pixels, write_picture

LINES = {
    "train": [
        "379 1e64990d1b40c1758a2aaa9c7f7a85_jumbo.jpeg negative cohen",
        "sub-S03047 sub-S03047_ses-E07985_run-1_bp-chest_vp-ap_dx.png positive bimcv",
        "12 a name with spaces.png positive rnsa",
        "12 another.png negative cohen",
        "13 thirteen.png positive sirm",
    ],
    "val": ["14 fourteen.png negative rsna", "15 fifteen.png positive ricord"],
    "test": ["12 twelve.png positive sirm", "16 sixteen.png negative rsna"],
}


def write_covidx(root, lists):
    for part, lines in LINES.items():
        (root / part).mkdir(parents=True)
        (root / f"{part}.txt").write_text("".join(f"{line}\n" for line in lines))
        for number, line in enumerate(lines):
            write_picture(root / part / name_of(line), pixels(number))
    lists.mkdir()
    for part, lines in LINES.items():  # BenchX lost each first line
        (lists / f"{part}.txt").write_text("".join(f"{part}/{name_of(line)}\n" for line in lines[1:]))
    (lists / "train_10.txt").write_text(f"train/{name_of(LINES['train'][1])}\n")


def name_of(line):
    return " ".join(line.split()[1:-2])
