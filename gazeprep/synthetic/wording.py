"""Sentences that name findings and regions, in several wordings, with what they claim and where one looks."""

import re
from dataclasses import dataclass, field

import numpy as np

from gazeprep.synthetic.anatomy import SIDES
from gazeprep.synthetic.findings import DISEASES, Finding, Kind

GRADES: dict[Kind, tuple[str, str, str]] = {
    "effusion": ("small", "moderate", "large"),
    "pneumothorax": ("small", "moderate", "large"),
    "consolidation": ("mild", "moderate", "extensive"),
    "groundglass": ("faint", "moderate", "extensive"),
    "atelectasis": ("mild", "moderate", "marked"),
    "cardiomegaly": ("mild", "moderate", "severe"),
    "edema": ("mild", "moderate", "severe"),
}
TUBE_HEIGHTS_CM = ("5", "3.5", "2")
LINE_ENDS = ("upper superior vena cava", "lower superior vena cava", "right atrium")
ORDINALS = {3: "third", 4: "fourth", 5: "fifth", 6: "sixth", 7: "seventh"}

PHRASES: dict[Kind, tuple[str, ...]] = {
    "effusion": (
        "a {grade} {side} pleural effusion",
        "a {grade} {side}-sided pleural effusion",
        "a {grade} pleural effusion on the {side}",
    ),
    "pneumothorax": (
        "a {grade} {side} pneumothorax",
        "a {grade} {side}-sided pneumothorax",
        "a {grade} pneumothorax on the {side}",
    ),
    "consolidation": (
        "{grade} consolidation in the {side} {zone} lung zone",
        "{grade} airspace consolidation in the {side} {zone} lung",
        "an area of {grade} consolidation in the {zone} zone of the {side} lung",
    ),
    "groundglass": (
        "{grade} ground-glass opacity in the {side} {zone} lung zone",
        "{grade} hazy opacity in the {zone} zone of the {side} lung",
        "{grade} ground-glass opacification of the {side} {zone} lung",
    ),
    "atelectasis": (
        "{grade} linear atelectasis in the {side} {zone} lung zone",
        "{grade} plate-like atelectasis in the {side} {zone} lung",
        "{grade} atelectasis / scarring in the {side} {zone} lung zone",
    ),
    "cardiomegaly": ("{grade} cardiomegaly", "{grade} enlargement of the cardiac silhouette"),
    "nodule": (
        "a {size} cm nodule in the {side} {zone} lung zone",
        "a {size} cm pulmonary nodule in the {zone} zone of the {side} lung",
    ),
    "mass": (
        "a {size} cm mass in the {side} {zone} lung zone",
        "a {size} cm pulmonary mass in the {zone} zone of the {side} lung",
    ),
    "edema": ("{grade} pulmonary edema", "{grade} interstitial pulmonary edema"),
    "fracture": ("a displaced fracture of the {side} {rib} rib", "a {side} {rib} rib fracture"),
}
SURE = (
    "there is {phrase}",
    "{phrase} is present",
    "{phrase} is seen",
    "{phrase} is noted",
    "findings are consistent with {phrase}",
)
UNSURE = ("possible {bare}", "there may be {phrase}", "{phrase} cannot be excluded", "{phrase} is suspected")
SPECIAL: dict[Kind, tuple[str, ...]] = {
    "effusion": ("blunting of the {side} costophrenic angle reflects a {grade} effusion",),
    "cardiomegaly": ("the cardiac silhouette shows {grade} enlargement", "the heart is enlarged, {grade} in degree"),
    "edema": ("perihilar haziness and indistinct vessels reflect {grade} edema",),
    "tube": (
        "an endotracheal tube ends {height} cm above the carina",
        "the endotracheal tube tip is {height} cm above the carina",
    ),
    "line": (
        "a {side} internal jugular line ends in the {end}",
        "the tip of the {side} internal jugular catheter is in the {end}",
    ),
    "pacemaker": (
        "a {side} chest wall pacemaker is in place",
        "a {side}-sided pacemaker has its lead in the right ventricle",
    ),
}


@dataclass(frozen=True)
class Statement:
    """One sentence with its stop, what one looks at while saying it, what it says of the CheXpert labels."""

    text: str
    targets: tuple[str, ...]
    labels: dict[str, int] = field(default_factory=dict)
    finding: Finding | None = None


@dataclass(frozen=True)
class Normal:
    """A sentence about a normal region, unless a finding of `but_not` (on `side`) is there."""

    texts: tuple[str, ...]
    targets: tuple[str, ...]
    labels: tuple[str, ...]
    but_not: frozenset[str]
    side: str = ""


def _normal(texts: str, targets: str, labels: str = "", but_not: str = "", side: str = "") -> Normal:
    names = tuple(name for name in labels.split("|") if name)
    return Normal(tuple(texts.split("|")), tuple(targets.split()), names, frozenset(but_not.split()), side)


PAIRS = {
    "lungs": ("right_lung", "left_lung"),
    "apices": ("right_apex", "left_apex"),
    "costophrenic_angles": ("right_costophrenic_angle", "left_costophrenic_angle"),
}
PARENCHYMAL = "consolidation groundglass atelectasis nodule mass edema"
NORMALS = (
    _normal(
        "the heart is normal in size|heart size is normal|the cardiac silhouette is not enlarged|normal heart size",
        "heart",
        "Cardiomegaly",
        "cardiomegaly",
    ),
    _normal(
        "the mediastinal contours are normal|the mediastinum is within normal limits|mediastinum is unremarkable",
        "upper_mediastinum",
        "Enlarged Cardiomediastinum",
        "mass",
    ),
    _normal("the hilar contours are normal|both hila are unremarkable", "hila", "", "edema"),
    _normal(
        "the lungs are clear|lungs are well expanded and clear", "lungs", "", f"{PARENCHYMAL} pneumothorax effusion"
    ),
    _normal(
        "no focal consolidation|there is no airspace consolidation|no consolidation is seen",
        "lungs",
        "Consolidation",
        "consolidation groundglass",
    ),
    _normal(
        "no pleural effusion|the costophrenic angles are sharp|there is no pleural effusion",
        "costophrenic_angles",
        "Pleural Effusion",
        "effusion",
    ),
    _normal("no pneumothorax|there is no pneumothorax|both apices are clear", "apices", "Pneumothorax", "pneumothorax"),
    _normal(
        "no pleural effusion or pneumothorax|there is no effusion, no pneumothorax",
        "costophrenic_angles apices",
        "Pleural Effusion|Pneumothorax",
        "effusion pneumothorax",
    ),
    _normal("no pulmonary edema|pulmonary vasculature is normal", "hila", "Edema", "edema"),
    _normal(
        "the osseous structures are intact|no acute fracture|visualized ribs are unremarkable",
        "bones",
        "Fracture",
        "fracture",
    ),
    _normal("the hemidiaphragms are well seen|no free air under the diaphragm", "diaphragm", "", "effusion"),
    _normal("the trachea is midline|trachea is central", "trachea", "", "tube"),
    _normal("the aortic knob is normal|the aorta is unremarkable", "aortic_knob"),
    *(
        _normal(
            f"the {side} lung is clear|{side} lung without focal abnormality",
            f"{side}_lung",
            "",
            f"{PARENCHYMAL} pneumothorax effusion",
            side,
        )
        for side in SIDES
    ),
    *(
        _normal(
            f"the {side} apex is clear|{side} apex is unremarkable", f"{side}_apex", "", "pneumothorax nodule", side
        )
        for side in SIDES
    ),
    *(
        _normal(
            f"the {side} costophrenic angle is sharp|{side} costophrenic angle is clear",
            f"{side}_costophrenic_angle",
            "",
            "effusion",
            side,
        )
        for side in SIDES
    ),
)


def finding_slots(finding: Finding) -> dict[str, str]:
    """Return the words that identify a finding: side, zone, grade, size, rib, device place."""
    grades = GRADES.get(finding.kind)
    return {
        "side": finding.side,
        "zone": finding.zone,
        "grade": grades[finding.severity] if grades else "",
        "size": f"{finding.size_cm:g}",
        "rib": ORDINALS[finding.rib],
        "height": TUBE_HEIGHTS_CM[finding.severity],
        "end": LINE_ENDS[finding.severity],
    }


def phrase(rng: np.random.Generator, finding: Finding) -> str:
    """Return a noun phrase for a finding that is not a device."""
    return _pick(rng, PHRASES[finding.kind]).format(**finding_slots(finding))


def describe(rng: np.random.Generator, finding: Finding) -> Statement:
    """Say that a finding is there, or may be."""
    special = SPECIAL.get(finding.kind, ())
    if finding.certain and special and (finding.kind not in PHRASES or rng.random() < 0.25):
        text = _pick(rng, special).format(**finding_slots(finding))
    else:
        words = phrase(rng, finding)
        frame = _pick(rng, SURE if finding.certain else UNSURE)
        text = frame.format(phrase=words, bare=re.sub(r"^an? ", "", words))
    labels = dict.fromkeys(DISEASES[finding.kind].chexpert, 1 if finding.certain else -1)
    if finding.kind in ("consolidation", "groundglass"):
        labels["Lung Opacity"] = 1
    return Statement(_sentence(text), (finding.name,), labels, finding)


def normals(rng: np.random.Generator, findings: tuple[Finding, ...], count: int) -> list[Statement]:
    """Draw sentences about normal regions that contradict no finding and repeat no region."""
    chosen: list[Statement] = []
    seen: set[str] = set()
    for i in rng.permutation(len(NORMALS)):
        normal = NORMALS[int(i)]
        if len(chosen) == count:
            break
        parts = {part for target in normal.targets for part in PAIRS.get(target, (target,))}
        if _contradicted(normal, findings) or seen & parts:
            continue
        seen |= parts
        chosen.append(Statement(_sentence(_pick(rng, normal.texts)), normal.targets, dict.fromkeys(normal.labels, 0)))
    return chosen


def _contradicted(normal: Normal, findings: tuple[Finding, ...]) -> bool:
    return any(
        finding.kind in normal.but_not and (not normal.side or finding.side in ("", normal.side))
        for finding in findings
    )


def statements(rng: np.random.Generator, findings: tuple[Finding, ...], length: int) -> list[Statement]:
    """Describe all findings, fill up with normal regions to about `length` sentences, in a random order."""
    said = [describe(rng, finding) for finding in findings]
    said += normals(rng, findings, max(2, length - len(said)))
    return [said[int(i)] for i in rng.permutation(len(said))]


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _sentence(text: str) -> str:
    text = re.sub(r"\b(an?) (?=[aeiou])", "an ", text)
    return text[0].upper() + text[1:] + "."
