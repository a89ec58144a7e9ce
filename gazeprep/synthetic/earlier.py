"""What an earlier study of a subject showed, and the sentences in which the later report refers to it."""

from dataclasses import replace

import numpy as np

from gazeprep.synthetic.findings import DEVICES, DISEASES, Finding, Kind, make_finding
from gazeprep.synthetic.wording import GRADES, Statement, finding_slots

NAMES: dict[Kind, str] = {
    "effusion": "{side} pleural effusion",
    "pneumothorax": "{side} pneumothorax",
    "consolidation": "{side} {zone} lung consolidation",
    "groundglass": "{side} {zone} lung ground-glass opacity",
    "atelectasis": "{side} {zone} lung atelectasis",
    "cardiomegaly": "cardiomegaly",
    "nodule": "{side} {zone} lung nodule",
    "mass": "{side} {zone} lung mass",
    "edema": "pulmonary edema",
    "fracture": "{side} {rib} rib fracture",
}
CHANGES = {-1: "has decreased", 0: "is unchanged", 1: "has increased"}  # from before to now
STAYS, CHANGED, GONE = 0.7, 0.4, 0.35  # chances: of a finding, of its grade if it stays, of one that went since


def earlier_findings(rng: np.random.Generator, now: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Draw the findings before: most of today's, some of another grade, and at times one that went since."""
    before = [_graded_otherwise(rng, finding) for finding in now if rng.random() < STAYS]
    kinds = {finding.kind for finding in now}
    others = [kind for kind in NAMES if kind not in kinds]
    if rng.random() < GONE:
        before.append(make_finding(rng, others[int(rng.integers(len(others)))]))
    return tuple(sorted(before, key=lambda finding: finding.name))


def _graded_otherwise(rng: np.random.Generator, finding: Finding) -> Finding:
    severity, changed = int(rng.integers(3)), rng.random() < CHANGED
    return replace(finding, severity=severity) if changed and finding.kind in GRADES else finding


def comparisons(before: tuple[Finding, ...], now: tuple[Finding, ...]) -> tuple[Statement, ...]:
    """Say of each finding, devices aside, what became of it since the earlier study: nothing that an image shows."""
    old = {finding.name: finding for finding in before if finding.kind not in DEVICES}
    new = {finding.name: finding for finding in now if finding.kind not in DEVICES}
    said = []
    for name, finding in new.items():
        change = CHANGES[int(np.sign(finding.severity - old[name].severity))] if name in old else "is new"
        said.append(Statement(f"The {_named(finding)} {change} since the prior study.", ()))
    for finding in (old[name] for name in old if name not in new):
        labels = dict.fromkeys(DISEASES[finding.kind].chexpert, 0)
        said.append(Statement(f"The {_named(finding)} of the prior study has resolved.", (), labels))
    return tuple(said)


def _named(finding: Finding) -> str:
    return NAMES[finding.kind].format(**finding_slots(finding))
