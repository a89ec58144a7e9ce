"""Rule-based labels: one named sentence a rule, labels of whole reports, the synthetic corpus's own wording."""

import numpy as np
import pytest

from cogaze.evaluate.reports.labeller import CODES, Said, codes_of, labels_of, said_in, sentences
from cogaze.evaluate.reports.phrases import FINDINGS
from gazeprep.schema import CHEXPERT_LABELS, LABEL_ABSENT
from gazeprep.synthetic.findings import draw_findings
from gazeprep.synthetic.reports import write_report
from gazeprep.synthetic.wording import NORMALS

SENTENCES = {
    # what is named
    "named": ("Left basilar atelectasis.", {"Atelectasis": "positive"}),
    "two names": (
        "Cardiomegaly and pulmonary edema are present.",
        {"Cardiomegaly": "positive", "Edema": "positive"},
    ),
    "hyphens": ("Left-sided air-space disease.", {"Lung Opacity": "positive"}),
    "nodular opacity is both": ("A nodular opacity.", {"Lung Lesion": "positive", "Lung Opacity": "positive"}),
    "hydropneumothorax is both": (
        "Large hydropneumothorax.",
        {"Pleural Effusion": "positive", "Pneumothorax": "positive"},
    ),
    "nothing of ours": ("Degenerative changes of the spine.", {}),
    "pericardial effusion": ("Large pericardial effusion.", {}),
    "soft tissue edema": ("Soft tissue edema of the neck.", {}),
    "mass effect": ("Mass effect on the trachea.", {}),
    "bone lesion": ("No lytic bone lesions.", {}),
    "broken wire": ("Fractured sternotomy wire.", {"Support Devices": "positive"}),
    "old granulomatous infection": ("Residuals of prior granulomatous infection.", {}),
    # negation before
    "no": ("No pneumothorax.", {"Pneumothorax": "negative"}),
    "no evidence of": ("There is no evidence of pneumonia.", {"Pneumonia": "negative"}),
    "without": ("Cardiomegaly without edema.", {"Cardiomegaly": "positive", "Edema": "negative"}),
    "free of": ("The lungs are free of focal consolidation.", {"Consolidation": "negative"}),
    "clear of": (
        "Lungs are clear of airspace disease or effusion.",
        {"Lung Opacity": "negative", "Pleural Effusion": "negative"},
    ),
    "negative for": ("Negative for pneumothorax.", {"Pneumothorax": "negative"}),
    "list with or": (
        "No effusion, pneumothorax or consolidation.",
        {"Pleural Effusion": "negative", "Pneumothorax": "negative", "Consolidation": "negative"},
    ),
    "list with a size": (
        "No focal consolidation, large pleural effusion, or pneumothorax.",
        {"Pleural Effusion": "negative", "Pneumothorax": "negative", "Consolidation": "negative"},
    ),
    "list with or, then another": (
        "No consolidation, large effusion, or pneumothorax, but left atelectasis or edema.",
        {
            "Consolidation": "negative",
            "Pleural Effusion": "negative",
            "Pneumothorax": "negative",
            "Atelectasis": "uncertain",
            "Edema": "uncertain",
        },
    ),
    "to suggest": (
        "There is no opacity to suggest pneumonia.",
        {"Lung Opacity": "negative", "Pneumonia": "negative"},
    ),
    "removal": ("Interval removal of the endotracheal tube.", {"Support Devices": "negative"}),
    "resolution of": ("Resolution of the right pneumothorax.", {"Pneumothorax": "negative"}),
    # what ends it
    "but": (
        "No pneumothorax but a left effusion.",
        {"Pneumothorax": "negative", "Pleural Effusion": "positive"},
    ),
    "comma and a size": (
        "No pneumothorax, small left effusion.",
        {"Pneumothorax": "negative", "Pleural Effusion": "positive"},
    ),
    "and a side": (
        "No effusion and left lower lobe pneumonia.",
        {"Pleural Effusion": "negative", "Pneumonia": "positive"},
    ),
    "there is": (
        "No pneumothorax and there is mild edema.",
        {"Pneumothorax": "negative", "Edema": "positive"},
    ),
    "semicolon": ("No edema; small effusion.", {"Edema": "negative", "Pleural Effusion": "positive"}),
    "cause": (
        "The diaphragm is not seen due to effusion.",
        {"Pleural Effusion": "positive"},
    ),
    # negation after
    "is not seen": ("Pleural effusion is not seen.", {"Pleural Effusion": "negative"}),
    "are absent": (
        "Effusion, pneumothorax and consolidation are absent.",
        {"Pleural Effusion": "negative", "Pneumothorax": "negative", "Consolidation": "negative"},
    ),
    "has resolved": ("The left effusion has resolved.", {"Pleural Effusion": "negative"}),
    "no longer": ("The pneumothorax is no longer seen.", {"Pneumothorax": "negative"}),
    "one verb, one reach": (
        "A small effusion is present and pneumothorax is not seen.",
        {"Pleural Effusion": "positive", "Pneumothorax": "negative"},
    ),
    # what only reads like negation
    "no change": ("No change in the small left effusion.", {"Pleural Effusion": "positive"}),
    "not changed": ("The opacity has not significantly changed.", {"Lung Opacity": "positive"}),
    "no increase": ("No interval increase in pulmonary edema.", {"Edema": "positive"}),
    "nearly resolved": ("Nearly resolved left effusion.", {"Pleural Effusion": "positive"}),
    # doubt
    "possible": ("Possible pneumonia.", {"Pneumonia": "uncertain"}),
    "may represent": (
        "Left base opacity may represent pneumonia.",
        {"Lung Opacity": "positive", "Pneumonia": "uncertain"},
    ),
    "may be compatible with": (
        "Opacities which may be compatible with edema.",
        {"Lung Opacity": "positive", "Edema": "uncertain"},
    ),
    "may be due to": ("This may be secondary to edema.", {"Edema": "uncertain"}),
    "likely": ("Likely atelectasis.", {"Atelectasis": "uncertain"}),
    "is likely, then another": (
        "Retrocardiac opacity is likely atelectasis.",
        {"Lung Opacity": "positive", "Atelectasis": "uncertain"},
    ),
    "is likely": ("Atelectasis is likely.", {"Atelectasis": "uncertain"}),
    "less likely": ("Pneumonia is less likely.", {"Pneumonia": "uncertain"}),
    "to be considered": ("Pneumonia should be considered.", {"Pneumonia": "uncertain"}),
    "probably present": ("Small effusions are probably present.", {"Pleural Effusion": "uncertain"}),
    "unlikely": ("Pneumonia is unlikely.", {"Pneumonia": "negative"}),
    "cannot be excluded": ("Pneumonia cannot be excluded.", {"Pneumonia": "uncertain"}),
    "cannot exclude": ("Cannot entirely exclude pneumonia.", {"Pneumonia": "uncertain"}),
    "not excluded": ("A small effusion is not excluded.", {"Pleural Effusion": "uncertain"}),
    "suspected": ("Small effusions suspected.", {"Pleural Effusion": "uncertain"}),
    "versus": ("Atelectasis versus pneumonia.", {"Atelectasis": "uncertain", "Pneumonia": "uncertain"}),
    "or of two": ("Infiltrate or atelectasis.", {"Lung Opacity": "uncertain", "Atelectasis": "uncertain"}),
    "or of one": ("Acute or subacute rib fracture.", {"Fracture": "positive"}),
    "question mark": ("Edema?", {"Edema": "uncertain"}),
    "consistent with": ("Findings consistent with pneumonia.", {"Pneumonia": "positive"}),
    "nothing suspicious": ("No findings suspicious for pneumonia.", {"Pneumonia": "negative"}),
    "no, then possible": (
        "No effusion, possible pneumonia.",
        {"Pleural Effusion": "negative", "Pneumonia": "uncertain"},
    ),
    "history": ("History of pneumonia.", {}),
    # healthy parts
    "normal heart": ("Heart size is normal.", {"Cardiomegaly": "negative"}),
    "normal before": ("Normal heart size.", {"Cardiomegaly": "negative"}),
    "several parts": (
        "Heart size, mediastinal contour, and pulmonary vascularity are within normal limits.",
        {"Cardiomegaly": "negative", "Enlarged Cardiomediastinum": "negative", "Edema": "negative"},
    ),
    "one each": (
        "The heart is enlarged and the mediastinum is normal.",
        {"Cardiomegaly": "positive", "Enlarged Cardiomediastinum": "negative"},
    ),
    "silhouette": (
        "The cardiomediastinal silhouette is unremarkable.",
        {"Cardiomegaly": "negative", "Enlarged Cardiomediastinum": "negative"},
    ),
    "clear lungs": ("The lungs are clear.", {"Lung Opacity": "negative"}),
    "one clear lung": ("The right lung is clear.", {}),
    "sharp angles": ("The costophrenic angles are sharp.", {"Pleural Effusion": "negative"}),
    "one sharp angle": ("The left costophrenic angle is sharp.", {}),
    "intact bones": ("The osseous structures are intact.", {"Fracture": "negative"}),
    "stable alone": ("The heart is stable in size, lungs are clear.", {"Lung Opacity": "negative"}),
    # enlarged parts
    "enlarged heart": ("The heart is mildly enlarged.", {"Cardiomegaly": "positive"}),
    "not enlarged": ("The cardiac silhouette is not enlarged.", {"Cardiomegaly": "negative"}),
    "borderline": ("The heart size is borderline.", {"Cardiomegaly": "uncertain"}),
    "upper limits of normal": ("Heart size at the upper limits of normal.", {"Cardiomegaly": "negative"}),
    "wide mediastinum": ("The mediastinum is widened.", {"Enlarged Cardiomediastinum": "positive"}),
    "congested vessels": ("The pulmonary vasculature is congested.", {"Edema": "positive"}),
    # all of it
    "no acute disease": ("No acute disease.", {"No Finding": "positive"}),
    "normal radiograph": ("Normal chest radiograph.", {"No Finding": "positive"}),
    "normal but": ("Cardiomegaly, no acute pulmonary findings.", {"Cardiomegaly": "positive"}),
    "lungs alone": ("Lungs demonstrate no acute findings.", {}),
    "bones alone": ("No acute bony abnormality.", {}),
    "no acute process": ("No acute cardiopulmonary process.", {"No Finding": "positive"}),
}


@pytest.mark.parametrize(("sentence", "expected"), SENTENCES.values(), ids=SENTENCES)
def test_a_sentence_says_what_a_reader_takes_from_it(sentence, expected):
    assert {said.label: said.status for said in said_in(sentence)} == expected
    assert {said.label: said.status for said in said_in(sentence.upper())} == expected


def test_sentences_end_where_a_reader_ends_them():
    text = "1. A 3.5 cm nodule.\n2. No effusion!  Edema?\n\nDr. X was told"
    assert sentences(text) == ("1. A 3.5 cm nodule.", "2. No effusion!", "Edema?", "Dr. X was told")
    assert sentences(" \n ") == ()
    listed = (
        "Pleura:\n- No effusion\n- Left pneumothorax\n\nImpression: 1. Small left\npneumothorax 2. No 3.5 cm nodule"
    )
    assert sentences(listed) == (
        "Pleura:",
        "- No effusion",
        "- Left pneumothorax",
        "Impression:",
        "1. Small left pneumothorax",
        "2. No 3.5 cm nodule",
    )


def test_the_strongest_sentence_of_a_report_counts():
    said = labels_of("No left effusion. Possible right effusion. Small left effusion. No edema.")
    assert said == {"Pleural Effusion": "positive", "Edema": "negative"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No acute process.", True),
        ("No effusion. A pacemaker is in place.", True),
        ("Scoliosis.", True),
        ("Possible edema.", False),
        ("No acute process. Cardiomegaly.", False),
        (" . ", False),
        ("", False),
    ],
)
def test_no_finding_is_a_report_without_any_but_devices(text, expected):
    assert ("No Finding" in labels_of(text)) == expected


def test_codes_are_in_the_order_of_the_shards_labels():
    codes = codes_of(["Cardiomegaly. No edema. Possible pneumonia.", ""])
    row = dict(zip(CHEXPERT_LABELS, codes[0].tolist(), strict=True))
    assert {label: code for label, code in row.items() if code != LABEL_ABSENT} == {
        "Cardiomegaly": CODES["positive"],
        "Edema": CODES["negative"],
        "Pneumonia": CODES["uncertain"],
    }
    assert (codes[1] == LABEL_ABSENT).all()
    assert codes_of([]).shape == (0, 14)


def test_every_label_but_no_finding_has_words():
    assert set(FINDINGS) == set(CHEXPERT_LABELS) - {"No Finding"}


def test_a_label_stands_once_in_a_sentence_strongest_first():
    assert said_in("No left effusion but a right effusion.") == (Said("Pleural Effusion", "positive"),)


# --- the synthetic corpus, whose sentences say what they claim

OPACITY = "Lung Opacity"  # the corpus has it beside every consolidation, and not where lungs are clear


@pytest.mark.parametrize("text", [text for normal in NORMALS for text in normal.texts])
def test_normal_sentences_of_the_corpus_deny_what_it_says(text):
    normal = next(one for one in NORMALS if text in one.texts)
    said = {one.label: CODES[one.status] for one in said_in(text) if one.label != OPACITY}
    assert said == dict.fromkeys(normal.labels, 0)


def test_reports_of_the_corpus_have_its_labels():
    rng = np.random.default_rng(5)
    for number in range(120):
        findings = draw_findings(rng, (), 0.3)
        report = write_report(rng, findings, bool(number % 2), "CHEST (PA AND LAT)", "full")
        text = " ".join(statement.text for statement in report.findings) + " " + report.impression
        codes = {label: CODES[status] for label, status in labels_of(text).items() if label != OPACITY}
        assert codes == {label: code for label, code in report.labels.items() if label != OPACITY}, text
        opaque = {CODES[labels_of(text).get(OPACITY, "negative")] for one in findings if one.kind == "groundglass"}
        assert 0 not in opaque, text
