"""Does a text find the place that a reader drew? Maps on patches against REFLACX's ellipses and EGD-CXR's boxes.

A case is what one reader drew of one label on one image: all its ellipses or boxes together. The text is a prompt,
the same for every image, or the sentence in which that reader named the label.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cogaze.evaluate.metrics import BoolArray, FloatArray
from cogaze.evaluate.readings import Reading, Region, coverage
from gazeprep.maps import Grid
from gazeprep.metrics import auc_shuffled, hits_of_map

LEAST_CERTAINTY = 3  # "possibly", about one in two: what REFLACX's authors count as present
LEVELS = np.linspace(0.1, 0.9, 9)  # of a map scaled to 0..1: from here on it points at a patch
HIT_IOU = (0.1, 0.3, 0.5)

# Label of REFLACX -> its prompt, and the words by which a sentence names it; phases 1 and 2-3 have different labels.
FINDINGS: dict[str, tuple[str, str]] = {
    "Abnormal mediastinal contour": ("abnormal mediastinal contour", r"mediastin\w+"),
    "Acute fracture": ("acute fracture", r"fractur\w+"),
    "Airway wall thickening": ("airway wall thickening", r"(airway|bronchial|peribronchial)\b.*thicken\w+"),
    "Atelectasis": ("atelectasis", r"atelecta\w+"),
    "Consolidation": ("consolidation", r"consolidat\w+"),
    "Emphysema": ("emphysema", r"emphysema\w*"),
    "Enlarged cardiac silhouette": ("enlarged cardiac silhouette", r"cardiomegaly|(heart|cardiac)\b.*enlarge\w*"),
    "Enlarged hilum": ("enlarged hilum", r"hil(um|ar|a)\b"),
    "Fibrosis": ("fibrosis", r"fibro\w+"),
    "Fracture": ("fracture", r"fractur\w+"),
    "Groundglass opacity": ("ground-glass opacity", r"ground[ -]?glass|haz(y|iness)"),
    "Hiatal hernia": ("hiatal hernia", r"hiatal hernia"),
    "High lung volume / emphysema": ("hyperinflated lungs", r"emphysema\w*|hyperinflat\w+"),
    "Interstitial lung disease": ("interstitial lung disease", r"interstitial (lung|opacit\w+|disease)|fibro\w+"),
    "Lung nodule or mass": ("lung nodule or mass", r"nodul\w+|mass(es)?"),
    "Mass": ("mass", r"mass(es)?"),
    "Nodule": ("nodule", r"nodul\w+"),
    "Pleural abnormality": ("pleural effusion or thickening", r"effusions?|pleural thicken\w+"),
    "Pleural effusion": ("pleural effusion", r"effusions?"),
    "Pleural thickening": ("pleural thickening", r"pleural thicken\w+"),
    "Pneumothorax": ("pneumothorax", r"pneumothora\w+"),
    "Pulmonary edema": ("pulmonary edema", r"edema"),
    "Wide mediastinum": ("wide mediastinum", r"mediastin\w+"),
}
# EGD-CXR's boxes are parts of the body; its regions that one sentence alone names have words of their own.
PARTS: dict[str, str] = {
    "cardiac silhouette": r"heart|cardiac",
    "trachea": r"trachea\w*",
    "upper mediastinum": r"mediastin\w+",
    **{
        f"{side} {part}": rf"{side}\b.*\b{words}"
        for side in ("left", "right")
        for part, words in {
            "clavicle": "clavicle",
            "costophrenic angle": "(costophrenic|effusion)",
            "hilar structures": "hil(um|ar)",
            "lung": "lung",
            "upper lung zone": "upper",
            "mid lung zone": "mid",
            "lower lung zone": "(lower|base|basilar)",
        }.items()
    },
}
DENIED = re.compile(r"\b(no|not|without|free of|negative for|resolved|normal|clear|unremarkable)\b", re.IGNORECASE)


def prompt_of(label: str) -> str:
    """Return the words that stand for a label: of a finding those of FINDINGS, of a part of the body its name."""
    return f"{FINDINGS[label][0] if label in FINDINGS else label.lower()}."


def naming_sentence(label: str, sentences: Sequence[str]) -> str:
    """Return the first sentence that names a label and, of a finding, does not deny it; "" where none does."""
    finding = label in FINDINGS
    words = re.compile(rf"\b({FINDINGS[label][1] if finding else PARTS.get(label, re.escape(label))})\b", re.IGNORECASE)
    named = (text for text in sentences if words.search(text))
    return next((text for text in named if not (finding and DENIED.search(text))), "")


@dataclass(frozen=True)
class Case:
    """What one reader drew of a label: number of the reading, its regions of one shape, the sentence that names it."""

    reading: int
    label: str
    regions: tuple[Region, ...]
    sentence: str

    @property
    def shape(self) -> str:
        """Return what it is made of: ellipses of a finding, or boxes of a part of the body."""
        return self.regions[0].shape


def cases_of(readings: Sequence[Reading], least_certainty: int = LEAST_CERTAINTY) -> list[Case]:
    """List the cases of readings; an ellipse less certain than that does not count, boxes state no certainty."""
    found = []
    for number, reading in enumerate(readings):
        sure = [one for one in reading.regions if one.shape == "box" or one.certainty >= least_certainty]
        for shape, label in dict.fromkeys((one.shape, label) for one in sure for label in one.labels):
            own = tuple(one for one in sure if label in one.labels and one.shape == shape)
            found.append(Case(number, label, own, naming_sentence(label, reading.sentences)))
    return found


@dataclass(frozen=True, eq=False)
class Located:
    """N cases on patches: covered (N, P), the share of a patch within; shown, centred (N, P); subject (N,).

    centred: whether a patch's middle lies within.
    """

    covered: FloatArray
    centred: BoolArray
    shown: BoolArray
    subject: FloatArray

    @classmethod
    def of(cls, cases: Sequence[Case], readings: Sequence[Reading], grid: Grid) -> "Located":
        """Draw the cases on the patches of their readings' canvases."""
        canvases = [readings[case.reading].canvas for case in cases]
        pairs = [(case.regions, canvas.view.canvas_px) for case, canvas in zip(cases, canvases, strict=True)]
        return cls(
            covered=np.array([coverage(*pair, grid) for pair in pairs]).reshape(-1, grid[0] * grid[1]),
            centred=np.array([_centred(*pair, grid) for pair in pairs], dtype=np.bool_).reshape(-1, grid[0] * grid[1]),
            shown=np.array([one.patch_mask for one in canvases], dtype=np.bool_).reshape(-1, grid[0] * grid[1]),
            subject=np.array([readings[case.reading].subject for case in cases], dtype=np.float64),
        )

    def __len__(self) -> int:
        return len(self.covered)

    def __getitem__(self, rows: BoolArray) -> "Located":
        return Located(self.covered[rows], self.centred[rows], self.shown[rows], self.subject[rows])

    def pointing(self, saliency: FloatArray) -> FloatArray:
        """1 where the middle of the map's highest shown patch lies within, else 0; ties share (N,)."""
        value = np.where(self.shown, saliency, -np.inf)
        top = self.shown & (value == value.max(axis=1, keepdims=True))
        return np.asarray((top & self.centred).sum(axis=1) / top.sum(axis=1))

    def auc(self, saliency: FloatArray) -> FloatArray:
        """Chance that a point within has a higher value than one beside it, ties half (N,); NaN without either."""
        found = np.full(len(self), np.nan)
        for row, cells in enumerate(self.shown):
            inside, value = self.covered[row, cells], np.broadcast_to(saliency, self.shown.shape)[row, cells]
            if 0 < inside.sum() < len(inside):
                found[row] = auc_shuffled(value[None], hits_of_map(inside[None]), hits_of_map(1 - inside[None]))
        return found

    def iou(self, saliency: FloatArray) -> FloatArray:
        """Area in both over area in either (N, T), of the regions and the patches from each of LEVELS on.

        The map is scaled to 0..1 over the shown patches; one of a single value points at all of them.
        """
        value = np.where(self.shown, saliency, np.nan)
        low, high = np.nanmin(value, axis=1, keepdims=True), np.nanmax(value, axis=1, keepdims=True)
        scaled = np.divide(value - low, high - low, out=np.ones_like(value), where=high > low)
        inside = np.where(self.shown, self.covered, 0.0)
        chosen = (scaled[..., None] >= LEVELS - 1e-9) & self.shown[..., None]
        both = (inside[..., None] * chosen).sum(axis=1)
        return np.asarray(both / (inside.sum(axis=1)[:, None] + chosen.sum(axis=1) - both))


def _centred(regions: Sequence[Region], canvas_px: int, grid: Grid) -> BoolArray:
    x, y = ((np.arange(cells) + 0.5) * canvas_px / cells for cells in (grid[1], grid[0]))
    held = [region.holds(x[None], y[:, None]).reshape(-1) for region in regions]
    return np.asarray(np.any(held, axis=0))
