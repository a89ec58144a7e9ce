"""What tests of builds share beside fixtures: the corpus's sources, one's own tables, a build's bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gazeprep.cases import Sources
from gazeprep.images import Resize
from gazeprep.samples import MapConfig, PictureConfig, SampleConfig
from gazeprep.sources.table import TableSource
from gazeprep.synthetic import Corpus

SMALL = SampleConfig(picture=PictureConfig(Resize(size_px=64)), maps=MapConfig(px_per_deg=37.5))


def sources_of(corpus: Corpus, **changes: Any) -> Sources:
    """All four sources of a corpus, or what `changes` puts in their place."""
    folders = {
        "reflacx": corpus.reflacx,
        "egd": corpus.egd,
        "mimic": corpus.mimic_cxr,
        "mimic_jpg": corpus.mimic_cxr_jpg,
    }
    return Sources(**{**folders, **changes})


def tree(out: Path) -> dict[str, bytes]:
    """What a build leaves for its readers: every file's bytes by its path."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files if ".build" not in path.parts}


@dataclass
class Tables:
    """A folder of somebody's own tables with pictures; every gaze reading has two sentences."""

    root: Path
    images: list[str] = field(default_factory=list)
    fixations: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def image(self, image_id: str, subject: str = "s1", split: str = "train", pixels: np.ndarray | None = None) -> None:
        """Write a PNG (rows, cols) and list it."""
        pixels = np.full((40, 30), 90, np.uint8) if pixels is None else pixels
        (self.root / f"{image_id}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        self.images.append(f"{image_id},{image_id}.png,{subject},{split}")

    def reading(
        self, reading_id: str, image_id: str, points: Sequence[tuple[float, float]] = ((8, 9), (20, 30))
    ) -> None:
        """List a reading: one second for each point, the first sentence spoken by 1 s, the second by 2 s."""
        for i, (x, y) in enumerate(points):
            self.fixations.append(f"{reading_id},{image_id},{x},{y},{i},{i + 1},4,4")
        self.words += [f"{reading_id},clear lungs.,0.5,1.0", f"{reading_id},no effusion.,1.5,2.0"]

    def source(self, name: str = "own") -> TableSource:
        """Write the tables and name them."""
        tables = {
            "images": ("image_id,path,subject_id,split", self.images),
            "fixations": ("reading_id,image_id,x,y,start,end,px_per_deg_x,px_per_deg_y", self.fixations),
            "words": ("reading_id,word,start,end", self.words),
        }
        for table, (header, rows) in tables.items():
            (self.root / f"{table}.csv").write_text("\n".join([header, *rows]) + "\n")
        return TableSource(
            self.root / "images.csv",
            self.root / "fixations.csv" if self.fixations else None,
            self.root / "words.csv" if self.words else None,
            name=name,
        )
