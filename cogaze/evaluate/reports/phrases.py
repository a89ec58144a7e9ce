"""The words of chest radiograph reports: what names a finding, what names a part that can be healthy, what is neither.

All patterns are regular expressions of `plain` text: lower case, single spaces, hyphens opened, commas, semicolons,
colons, slashes and question marks as words of their own. Written for this project; CheXpert's labeller has other lists.
"""

import re
from dataclasses import dataclass

TOKEN = re.compile(r"[a-z0-9]+(?:\.[0-9]+)?|[,;:/?]")

# What reads like a finding, a negation or neither, in the words that the rest of the rules know.
REWRITTEN = (
    (r"and / or", "or"),
    (r"cannot|can not", "could not"),
    (r"(?:could not|not)(?: \w+)?(?: be)?(?: \w+ly)? (?:excluded|ruled out)", "unexcluded"),
    (
        r"could not(?: \w+ly)? (?:exclude|rule out)|does not exclude|not excluding|(?:difficult|hard) to exclude",
        "possible",
    ),
    (r"(?:consistent|compatible|in keeping) with", "meaning"),
    (r"no longer \w+", "absent"),
    (r"(?:no|not|without)(?: \w+){0,2} (?:changes?|changed|difference)(?! of)", "unchanged"),
    (
        r"no(?: \w+){0,2} (?:increase|decrease|progression|worsening|improvement|enlargement|growth)(?= (?:in|of) )",
        "unchanged",
    ),
    (r"not (?:well|clearly|adequately|fully|optimally) \w+", "obscured"),
    (r"not only", ""),
    (
        r"(?:near|nearly|almost|partial|partially|incomplete|incompletely)(?: complete\w*)? (?:resol\w+|clear\w+)",
        "less",
    ),
    (
        r"(?:catheter|screw|wires?|leads?|hardware|rods?)(?: (?:is|are))? fractur\w+"
        r"|fracture[ds]?(?: \w+){0,4} (?:screws?|wires?|leads?|rods?|catheters?)",
        "broken device",
    ),
)
# Phrases that hold a finding's word and are not that finding.
OTHER = (
    r"(?:pericardial|joint|knee|elbow) effusions?",
    r"mass effect|body mass(?: index)?",
    r"(?:soft tissue|subcutaneous|peripheral|facial|leg|bone marrow|bowel wall) (?:o?edema|mass|nodul\w+|densit\w+)",
    r"(?:bony?|osseous|lytic|blastic|sclerotic|skeletal|ribs?|vertebral|expansile|destructive)(?: \w+)? lesions?",
    r"(?:thyroid|adrenal|renal|hepatic|liver|breast|axillary|chest wall) (?:mass\w*|nodul\w+|lesions?|tumou?rs?)",
    r"(?:vertebral|body|bodies|compression|tracheal|airway|endplate|end plate)(?: \w+)? collapse",
    r"sub ?segmental airway collapse",
    r"mid ?lines?|lines? of|air fluid (?:levels?|lines?)",
    r"(?:(?:prior|old|previous|remote|chronic) )?granulomatous (?:\w+ )?(?:infection|disease|changes)",
    r"(?:mastoid|sinus|bowel|colonic|gastric|abdominal|metallic|overlying|external)(?: \w+)? opacit\w+",
)

# What names a finding, by label; a mention's last word is where its negation is looked for.
FINDINGS = {
    "Atelectasis": (
        r"atelecta\w+",
        r"(?:lobe|lobar|lung|pulmonary|segmental|partial|complete|basilar)(?: \w+)? collapse",
        r"collapse of the(?: \w+){0,3} (?:lobe|lung)",
        r"collapsed(?: \w+)? (?:lobe|lung)",
    ),
    "Cardiomegaly": (
        r"cardiomegal\w+",
        r"(?:cardiac|heart|cardiopericardial|(?:left|right|bi) ?(?:ventricular|atrial|ventricle|atrium))"
        r"(?: \w+)? enlargement",
        r"enlargement of the(?: \w+)? (?:heart|cardiac|cardiopericardial)",
    ),
    "Consolidation": (r"consolidat\w+",),
    "Edema": (
        r"o?edema(?:tous)?",
        r"(?:vascular|pulmonary|venous|central|interstitial|perihilar|hilar)(?: \w+)? (?:congestion|engorgement)",
        r"congestive (?:heart )?(?:failure|changes)|heart failure|chf",
        r"(?:volume|fluid) overload|cephali[sz]ation|kerley(?: b)?(?: lines?)?",
        r"(?:vascular|vessel) (?:indistinctness|redistribution|prominence)",
        r"pulmonary venous hypertension",
    ),
    "Enlarged Cardiomediastinum": (
        r"(?:mediastin\w+|cardiomediastin\w+)(?: \w+)? (?:widening|enlargement|prominence|fullness|mass\w*)",
        r"(?:widening|enlargement|prominence|fullness) of the(?: \w+)? (?:mediastin\w+|cardiomediastin\w+)",
    ),
    "Fracture": (r"fractures?|fractured|fracturing",),
    "Lung Lesion": (
        r"nodul\w+|micronodul\w+",
        r"mass(?:es)?|mass like|masslike",
        r"(?:lung|pulmonary|parenchymal|cavitary|cavitating|focal|spiculated|suspicious|hilar)(?: \w+)? lesions?",
        r"neoplas\w+|malignan\w+|carcinoma\w*|tumou?rs?|metasta\w+|lung cancer|cavitation|cavitary",
    ),
    "Lung Opacity": (
        r"opaci\w+",
        r"infiltrat\w+",
        r"air ?space(?: \w+)? (?:disease|diseases|process|processes|opacit\w+|infiltrate\w*|abnormalit\w+)",
        r"(?:lung|pulmonary|parenchymal|basilar|basal|lobe|hilar|patchy|streaky|hazy|increased|ill defined)"
        r"(?: \w+)? densit(?:y|ies)",
        r"interstitial (?:\w+ )?(?:markings?|patterns?|disease|prominence|thickening|changes|process)",
        r"(?:prominent|increased|coarse|coarsened|thickened) (?:\w+ )?(?:interstitial|interstitium)(?: markings)?",
        r"interstitial lung diseases?|reticula\w+|reticulonodular|ground ?glass|haz(?:y|iness)",
    ),
    "Pleural Effusion": (
        r"effusions?",
        r"pleural (?:\w+ )?fluid(?: collections?)?",
        r"fluid (?:\w+ ){0,2}(?:the )?(?:\w+ )?(?:fissures?|pleural space)|fissural fluid",
        r"(?:hydro|ha?emo|hydropneumo|ha?emopneumo)thora\w+|empyema\w*",
    ),
    "Pleural Other": (
        r"pleural (?:\w+ )?(?:thickening|scar\w*|plaques?|calcif\w+|fibros\w+|disease|parenchymal scar\w*)",
        r"pleuro ?parenchymal (?:\w+ )?(?:thickening|scar\w*|fibros\w+)",
        r"(?:apical|biapical) (?:\w+ )?(?:capping|caps?|thickening)",
        r"thickening of the (?:\w+ )?pleura|pleural based (?:\w+ )?(?:thickening|scar\w*|densit\w+)|fibrothorax",
        r"thickened pleura",
    ),
    "Pneumonia": (r"(?:broncho)?pneumoni(?:a|as|c)", r"infecti(?:on|ons|ous|ve)"),
    "Pneumothorax": (r"(?:hydro|ha?emo)?pneumothora\w+|ptx",),
    "Support Devices": (
        r"(?:\w+ )?(?:tube|catheter)s?(?: tips?)?",
        r"(?:(?:central|venous|arterial|picc|subclavian|jugular|ij|midline|vascular|art|support)(?: \w+)? )lines?",
        r"picc|port ?a ?cath\w*|port ?cath\w*|mediport|(?:chest|infusion|access|venous) ports?|swan ganz|dobh?off",
        r"pacemakers?|pacers?|(?:aicd|icd|defibrillator|pacer|pacing|pacemaker)(?: leads?| wires?)*|leads?",
        r"sternotomy(?: \w+)? wires?|(?:sternal|median sternotomy|cerclage) (?:\w+ )?wires?",
        r"(?:prosthetic|mechanical|replacement|artificial|bioprosthetic)(?: \w+){0,2} valves?",
        r"valves? (?:replacement|prosthesis)|valvular prosthesis",
        r"stents?|(?:neuro)?stimulators?",
        r"(?:fixation|spinal|orthopedic|surgical) (?:\w+ )?(?:hardware|rods?|plates?|screws?)",
        r"hardware|prosthes[ei]s|(?:balloon pump|iabp|lvad|impella)|devices?|(?:pigtail|chest|jp) drains?",
        r"loop recorder|tracheostomy|arthroplast\w+|shunts?",
    ),
}

HEART = (
    r"(?:heart(?: silhouette| shadow)?|cardiac (?:silhouette|size|contours?|shadow|outline)"
    r"|cardio ?pericardial silhouette|cardiac(?= (?:and|,) mediastinal))"
)
MEDIASTINUM = r"(?:mediastin(?:um|al)(?: \w+)?)"
SILHOUETTE = r"(?:cardio ?mediastin(?:um|al)(?: \w+)?|heart (?:and )?mediastin(?:um|al)(?: \w+)?)"
VESSELS = (
    r"(?:(?:pulmonary )?vascular(?:ity|ature)?(?: markings)?|pulmonary vessels|(?:pulmonary )?vasculature|vessels)"
)


@dataclass(frozen=True)
class Part:
    """A part of the chest, the words that call it healthy, what that denies, and what other words say of it.

    abnormal, borderline: patterns of words after or before it, for the label `enlarged`; "" for none.
    """

    name: str
    healthy: str
    denies: tuple[str, ...]
    abnormal: str = ""
    borderline: str = ""
    enlarged: str = ""


NORMAL = (
    r"normal|unremarkable|within(?: \w+)? normal(?: \w+)? limits|within(?: \w+)? limits of normal|negative"
    r"|upper(?: \w+)? limits?(?: of)?(?: the)? normal|top normal|high normal"
)
BORDERLINE = r"borderline"
PARTS = (
    Part(
        SILHOUETTE,
        NORMAL,
        ("Cardiomegaly", "Enlarged Cardiomediastinum"),
        r"enlarged|wide|widened|prominent|enlargement",
        BORDERLINE,
        "Enlarged Cardiomediastinum",
    ),
    Part(
        HEART,
        NORMAL,
        ("Cardiomegaly",),
        r"enlarged|large|enlargement|increased|prominent|generous",
        BORDERLINE,
        "Cardiomegaly",
    ),
    Part(
        MEDIASTINUM,
        NORMAL,
        ("Enlarged Cardiomediastinum",),
        r"enlarged|wide|widened|prominent|full",
        BORDERLINE,
        "Enlarged Cardiomediastinum",
    ),
    Part(
        VESSELS,
        rf"{NORMAL}|clear|sharp",
        ("Edema",),
        r"congested|engorged|indistinct|cephali[sz]ed|distended|prominent|increased",
        enlarged="Edema",
    ),
    Part(r"(?<!right )(?<!left )(?:lungs|lung (?:fields|parenchyma))", rf"clear|{NORMAL}", ("Lung Opacity",)),
    Part(r"(?:costophrenic|cp) (?:angles|sulci|recesses)", rf"sharp|clear|{NORMAL}", ("Pleural Effusion",)),
    Part(r"pleural (?:spaces|surfaces)|pleura", rf"clear|{NORMAL}", ("Pleural Effusion",)),
    Part(r"(?:both |lung |pulmonary )?apices", rf"clear|{NORMAL}", ("Pneumothorax",)),
    Part(
        r"(?:osseous|bony|skeletal) (?:structures|thorax|skeleton|elements)|bones|ribs|skeleton",
        rf"intact|{NORMAL}",
        ("Fracture",),
    ),
)

# Sentences that call all of it normal, unless they are about one part alone.
NOTHING = (
    r"no(?: \w+){0,2} (?:acute|active|significant)(?: \w+){0,3} (?:disease|process|abnormalit\w+|findings?|pathology)",
    r"normal (?:\w+ )?(?:chest|examination|exam|study|radiographs?)",
    r"(?:chest|study|exam|examination|radiographs?) (?:(?:is|are|appears?) )?normal$",
)
ONE_PART = (
    r"bones?|bony|osse\w+|skelet\w+|fractures?|ribs?|spin\w+|abdom\w+|pleura\w*|mediastin\w+|heart|cardiac|lungs?",
    r"air ?space|interval|vascul\w+",
)


def compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Return what matches any of the patterns at whole words."""
    return re.compile(rf"(?<![^ ])(?:{'|'.join(patterns)})(?![^ ])")


_REWRITTEN = tuple((re.compile(rf"(?<![^ ])(?:{pattern})(?![^ ])"), said) for pattern, said in REWRITTEN)
_OTHER = compiled(OTHER)


def plain(sentence: str) -> str:
    """Return a sentence in the form that all patterns are of, what only reads like a finding taken out."""
    text = " ".join(TOKEN.findall(sentence.lower()))
    for pattern, said in _REWRITTEN:
        text = pattern.sub(said, text)
    return _OTHER.sub("other", text)
