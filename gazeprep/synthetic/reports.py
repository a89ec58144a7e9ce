"""The written report of a study: sections of text, laid out as MIMIC-CXR's files are."""

import textwrap
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gazeprep.synthetic.findings import DEVICES, Finding
from gazeprep.synthetic.wording import Statement, phrase, statements

Form = Literal["full", "history", "last_paragraph", "empty_findings", "no_headers", "addendum", "both_contexts"]

COMPLAINTS = {
    "effusion": ("shortness of breath and a known {side} pleural effusion", "dyspnea // assess {side} effusion"),
    "pneumothorax": ("sudden {side} chest pain", "{side} lung biopsy // eval for pneumothorax"),
    "consolidation": ("fever and productive cough // eval for pneumonia", "fever, crackles over the {side} lung"),
    "groundglass": ("viral infection and low oxygen saturation", "fever and dry cough // eval for pneumonia"),
    "atelectasis": ("low oxygen saturation after surgery", "shallow breathing after abdominal surgery"),
    "cardiomegaly": ("heart failure // eval for change in heart size", "hypertension and leg swelling"),
    "nodule": ("known pulmonary nodule // follow up", "heavy smoking // rule out nodule"),
    "mass": ("weight loss and hemoptysis, heavy smoking", "suspected lung cancer"),
    "edema": ("worsening dyspnea and orthopnea // eval for edema", "volume overload in renal failure"),
    "fracture": ("a fall with {side} chest wall pain // eval for rib fracture", "trauma to the {side} chest"),
    "tube": ("respiratory failure, intubated // check tube position",),
    "line": ("a new {side} central line // check position",),
    "pacemaker": ("a {side} pacemaker // check lead position",),
}
GENERAL = (
    "chest pain",
    "preoperative evaluation",
    "cough",
    "a positive tuberculin test",
    "dizziness",
    "abdominal pain",
)
PRIOR_RADIOGRAPH = "Prior radiograph from ___."
COMPARISONS = ("None.", "Chest radiograph ___.", PRIOR_RADIOGRAPH, "CT chest ___.")
TECHNIQUES = {
    "CHEST (PORTABLE AP)": "Portable AP view of the chest.",
    "CHEST (PA AND LAT)": "Chest, PA and lateral views.",
    "CHEST (SINGLE VIEW)": "Single PA view of the chest.",
}


@dataclass(frozen=True)
class Report:
    """What a study's report says, and the file's text."""

    context: str
    history: str
    findings: tuple[Statement, ...]
    impression: str
    text: str
    labels: dict[str, int]


def write_report(
    rng: np.random.Generator,
    findings: tuple[Finding, ...],
    woman: bool,
    procedure: str,
    form: Form,
    compared: tuple[Statement, ...] | None = None,
) -> Report:
    """Write the report of a study in one of the forms that occur; compared: what it says of an earlier study, if any.

    The latter draws no random numbers: all else is as without.
    """
    said = tuple(statements(rng, findings, int(rng.integers(4, 9))))
    who = "___ year old woman" if woman else "___ year old man"
    context = f"{who} with {complaint(rng, findings)}"
    history = (
        f"{_pick(rng, ('Hypertension', 'Diabetes', 'Smoking', 'Asthma', 'Prior surgery'))}."
        if form == "both_contexts"
        else ""
    )
    impression = "" if form in ("last_paragraph", "no_headers") else _impression(rng, findings)
    comparison = _pick(rng, COMPARISONS)
    if compared is not None:
        said, comparison = (*said, *compared), PRIOR_RADIOGRAPH
    labels = study_labels(said, impression)
    if form == "empty_findings":  # what is not written is not labelled
        labels = {label: value for label, value in labels.items() if value and label != "Support Devices"}
    body = " ".join(statement.text for statement in said).replace(" / ", "/")
    sections = _sections(form, comparison, (context, history), procedure, body, impression)
    return Report(context, history, said, impression, layout(sections, form), labels)


def complaint(rng: np.random.Generator, findings: tuple[Finding, ...]) -> str:
    """Say why the study was asked for; three times in four it hints at a finding."""
    if not findings or rng.random() < 0.25:
        return _pick(rng, GENERAL)
    finding = findings[int(rng.integers(len(findings)))]
    return _pick(rng, COMPLAINTS[finding.kind]).format(side=finding.side)


def _impression(rng: np.random.Generator, findings: tuple[Finding, ...]) -> str:
    lines = []
    for finding in findings:
        if finding.kind in DEVICES:
            continue
        text = phrase(rng, finding).replace(" / ", "/")
        text = text.removeprefix("an ").removeprefix("a ")
        text = text if finding.certain else f"possible {text}"
        if finding.kind == "consolidation":
            text += ", consistent with pneumonia" if finding.certain else ", concerning for pneumonia"
        lines.append(text[0].upper() + text[1:] + ".")
    if not lines:
        return _pick(
            rng,
            ("No acute cardiopulmonary process.", "No acute cardiopulmonary abnormality.", "Normal chest radiograph."),
        )
    return " ".join(f"{i + 1}. {line}" for i, line in enumerate(lines)) if len(lines) > 1 else lines[0]


def study_labels(said: tuple[Statement, ...], impression: str) -> dict[str, int]:
    """CheXpert labels of a report: the strongest of its claims, No Finding when nothing but devices is there."""
    labels: dict[str, int] = {}
    strength = {0: 0, -1: 1, 1: 2}
    for statement in said:
        for label, value in statement.labels.items():
            if label not in labels or strength[value] > strength[labels[label]]:
                labels[label] = value
    if "pneumonia" in impression:
        labels["Pneumonia"] = 1 if "consistent with pneumonia" in impression else -1
    if not any(value for label, value in labels.items() if label != "Support Devices"):
        labels["No Finding"] = 1
    return labels


def _sections(
    form: Form, comparison: str, asked_for: tuple[str, str], procedure: str, body: str, impression: str
) -> list[tuple[str, str]]:
    context, history = asked_for
    opening = [("EXAMINATION", procedure)]
    technique, last = ("TECHNIQUE", TECHNIQUES[procedure]), ("COMPARISON", comparison)
    if form == "history":
        return [("HISTORY", context), last, ("FINDINGS", body), ("IMPRESSION", impression)]
    if form == "both_contexts":
        asked = [("INDICATION", context), ("CLINICAL HISTORY", history)]
        return [*opening, *asked, technique, last, ("FINDINGS", body), ("IMPRESSION", impression)]
    if form == "last_paragraph":
        return [("INDICATION", context), (last[0], f"{comparison}\n\n{body}")]
    if form == "no_headers":
        return [("", f"Chest radiograph of a {context}."), ("", body)]
    found = "" if form == "empty_findings" else body
    asked = [("INDICATION", context), technique, last]
    return [*opening, *asked, ("FINDINGS", found), ("IMPRESSION", impression)]


def layout(sections: list[tuple[str, str]], form: Form) -> str:
    """Lay sections out: lines of at most 79 characters that begin with a space, blank lines of one space."""
    lines = ["FINAL REPORT".rjust(45)]
    if form == "addendum":
        lines = [
            *lines,
            " ADDENDUM:  The findings were discussed with Dr. ___ by telephone.",
            " ",
            " " + "_" * 78,
            *lines,
        ]
    for header, body in sections:
        paragraphs = body.split("\n\n")
        if header in ("FINDINGS", "IMPRESSION"):
            lines += [f" {header}: ", " "]
        elif header:
            paragraphs[0] = f"{header}:  {paragraphs[0]}"
        for paragraph in paragraphs:
            lines += textwrap.wrap(paragraph, 79, initial_indent=" ", subsequent_indent=" ", break_on_hyphens=False)
            lines.append(" ")
    return "\n".join(lines[:-1]) + "\n"


def multi_line_indication(report: Report) -> str:
    """Return the request as EGD's master sheet carries it: over several lines."""
    return report.context.replace(" // ", "\n// ").replace(" with ", " with\n", 1)


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
