"""Tables and lists of the twins, with plain newlines."""


def write_rows(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in [header, *rows]), encoding="utf-8", newline="\n")


def write_lists(folder, **parts):
    """Write BenchX's lists: one id a line, no header; `val` is what it calls validate."""
    for name, ids in parts.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.txt").write_text("".join(f"{one}\n" for one in ids), encoding="utf-8", newline="\n")


def benchx_parts(ids):
    """Cut 70/15/15 in order; the shares of train are its beginning."""
    train, rest = ids[: int(0.7 * len(ids))], ids[int(0.7 * len(ids)) :]
    half = len(rest) // 2
    return {"train": train, "train_1": train[:1], "train_10": train[:3], "val": rest[:half], "test": rest[half:]}
