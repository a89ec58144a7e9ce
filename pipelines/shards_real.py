"""Real files through the same path as everything else: python pipelines/shards_real.py --out out/real.

Chest images with somebody else's reports become shards; OSIE's fixations, seen on photographs, become maps only.
"""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from pydicom.data import get_testdata_file

from gazeprep import render_batch
from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.reports import empty_sections
from gazeprep.schema import Reading
from gazeprep.shards import ShardFolder
from gazeprep.sources import open_files, table

OSIE_GRID = (60, 80)  # rows, cols: cells of 10 px
OSIE_SIGMA_PX = 24.0  # about 1 degree, as OSIE's authors smooth


def shards_real(
    out: Path, nih: Path | None = None, osie: Path | None = None, wheel: Path | None = None, workers: int = 0
) -> None:
    """Build shards from real chest images and reports, and maps from real fixations.

    Args:
        out: folder for tables, shards, maps and pictures.
        nih: folder of NIH ChestX-ray PNGs.
        osie: OSIE's fixations.mat.
        wheel: the torchxrayvision wheel that carries the Open-i reports.
        workers: processes, 0 for one per core.
    """
    reports = open_files.openi_reports(wheel) if wheel is not None else ()
    found = [get_testdata_file(name, download=False) for name in open_files.CHEST_CR]
    chest_cr = [Path(str(path)) for path in found if path is not None]
    print(f"real: {len(reports)} Open-i reports, {len(chest_cr)} chest CR files")
    empty = Counter(name for report in reports for name in empty_sections(report))
    print("empty sections: " + (", ".join(f"{name} {count}" for name, count in empty.items()) or "none"))
    source = open_files.write_chest_tables(out / "tables", nih, chest_cr, reports)
    report = build(BuildConfig(out=out / "shards", sources=Sources(table=source), workers=workers))
    print(f"inputs {report.inputs} = samples {report.samples} + rejected {report.rejected}")
    draw_sheet(out / "shards", out / "chest.png")
    if osie is not None:
        write_osie_maps(out, osie)


def draw_sheet(shards: Path, png: Path) -> None:
    """Draw every sample of a small build on one sheet."""
    from gazeprep import plots

    folder = ShardFolder(shards)
    plots.save(plots.contact_sheet([folder.sample(key) for key in folder.index["key"]]), png)
    print(f"wrote {png}")


def write_osie_maps(out: Path, mat: Path) -> None:
    """Write the map of each photograph, all observers pooled, as float32 (images, rows, cols)."""
    by_image: dict[str, list[Reading]] = defaultdict(list)
    for reading in table.readings(open_files.write_osie_tables(out / "osie", mat)):
        by_image[reading.dicom_id].append(reading)
    maps, fixations = [], 0
    for readings in by_image.values():
        pooled = 0.0
        for reading in readings:
            seen = reading.load().fixations
            fixations += len(seen)
            counts = np.ones((1, len(seen)))
            pooled = pooled + render_batch(seen, counts, open_files.OSIE_SIZE, OSIE_GRID, sigma_px=OSIE_SIGMA_PX)[0]
        maps.append(pooled / len(readings))
    np.save(out / "osie" / "maps.npy", np.array(maps, dtype=np.float32))
    print(f"OSIE: {fixations} fixations of {sum(map(len, by_image.values()))} readings -> {len(maps)} maps")


if __name__ == "__main__":
    auto_cli(shards_real, as_positional=False)
