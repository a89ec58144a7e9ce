"""What stands for a class in zero-shot classification: sentences as reports say them, fixed, with a hash.

Of the kind that the published works use: CoGaze's ten fixed sentences a class, EGMA's and GLoRIA's severity, subtype
and place. Ours are not theirs, word for word; nothing is drawn at random. "normal" stands for the absence of each.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

Prompts = Mapping[str, tuple[str, ...]]
NORMAL = "normal"

PROMPTS: dict[str, tuple[str, ...]] = {
    NORMAL: (
        "The lungs are clear.",
        "No acute cardiopulmonary abnormality.",
        "Normal chest radiograph.",
        "The lungs are clear without focal consolidation, effusion or pneumothorax.",
        "The heart size and mediastinal contours are normal.",
        "No evidence of acute disease in the chest.",
        "Clear lungs and normal cardiomediastinal silhouette.",
        "No focal opacity. No pleural effusion. No pneumothorax.",
        "The cardiac silhouette is not enlarged and the lungs are well expanded and clear.",
        "Unremarkable study of the chest.",
    ),
    "pneumonia": (
        "Findings are consistent with pneumonia.",
        "There is a focal consolidation concerning for pneumonia.",
        "Patchy airspace opacity, likely infectious.",
        "Right lower lobe pneumonia.",
        "Left lower lobe opacity compatible with pneumonia.",
        "Multifocal pneumonia.",
        "New opacity in the lung base, suspicious for infection.",
        "Airspace consolidation with air bronchograms.",
        "Bilateral patchy opacities suggesting pneumonia.",
        "Lobar consolidation in keeping with pneumonia.",
    ),
    "pneumothorax": (
        "There is a pneumothorax.",
        "Small apical pneumothorax.",
        "Large right pneumothorax with collapse of the lung.",
        "Moderate left pneumothorax.",
        "A visceral pleural line is seen, without lung markings beyond it.",
        "Tension pneumothorax with shift of the mediastinum.",
        "Right apical pneumothorax is present.",
        "Left apical pneumothorax is present.",
        "Residual pneumothorax with a chest tube in place.",
        "Lucency along the chest wall, consistent with pneumothorax.",
    ),
    "tuberculosis": (
        "Findings are consistent with tuberculosis.",
        "Upper lobe cavitary lesion suspicious for active tuberculosis.",
        "Fibronodular opacities in both upper lobes, suggesting tuberculosis.",
        "Apical infiltrates with cavitation.",
        "Miliary nodules throughout both lungs.",
        "Right upper lobe consolidation with cavitation, concerning for tuberculosis.",
        "Left apical scarring and nodularity from tuberculosis.",
        "Hilar lymphadenopathy and upper lobe opacity, suggesting primary tuberculosis.",
        "Pulmonary tuberculosis with a pleural effusion.",
        "Calcified granulomas and upper lobe volume loss from tuberculosis.",
    ),
    "atelectasis": (
        "There is atelectasis.",
        "Mild bibasilar atelectasis.",
        "Linear atelectasis at the left lung base.",
        "Subsegmental atelectasis at the right base.",
        "Right lower lobe atelectasis with volume loss.",
        "Left lower lobe collapse.",
        "Plate-like atelectasis in the mid lung.",
        "Low lung volumes with bibasilar atelectasis.",
        "Retrocardiac opacity, likely atelectasis.",
        "Right upper lobe collapse.",
    ),
    "cardiomegaly": (
        "There is cardiomegaly.",
        "The heart is enlarged.",
        "Mild cardiomegaly.",
        "Moderate cardiomegaly.",
        "Severe cardiomegaly.",
        "The cardiac silhouette is enlarged.",
        "Stable enlargement of the heart.",
        "The heart size is markedly increased.",
        "Cardiac enlargement is noted.",
        "The cardiothoracic ratio is increased.",
    ),
    "consolidation": (
        "There is consolidation.",
        "Right lower lobe consolidation.",
        "Left lower lobe consolidation.",
        "Right upper lobe consolidation.",
        "Dense airspace consolidation.",
        "Patchy consolidation at the lung base.",
        "Bilateral consolidations.",
        "Increasing consolidation in the left lung.",
        "Right middle lobe consolidation.",
        "Confluent consolidation with air bronchograms.",
    ),
    "edema": (
        "There is pulmonary edema.",
        "Mild pulmonary edema.",
        "Moderate interstitial pulmonary edema.",
        "Severe pulmonary edema.",
        "Pulmonary vascular congestion with interstitial edema.",
        "Diffuse bilateral opacities consistent with pulmonary edema.",
        "Worsening pulmonary edema.",
        "Kerley lines and vascular indistinctness, consistent with edema.",
        "Perihilar haziness from alveolar edema.",
        "Findings of fluid overload with pulmonary edema.",
    ),
    "pleural effusion": (
        "There is a pleural effusion.",
        "Small left pleural effusion.",
        "Small right pleural effusion.",
        "Moderate right pleural effusion.",
        "Large left pleural effusion.",
        "Bilateral pleural effusions.",
        "Blunting of the costophrenic angle from a small effusion.",
        "Layering pleural effusion.",
        "Loculated pleural effusion.",
        "Increased pleural effusion.",
    ),
    "enlarged cardiomediastinum": (
        "The cardiomediastinal silhouette is enlarged.",
        "Widened mediastinum.",
        "There is widening of the mediastinal contour.",
        "The mediastinum is prominent.",
        "Enlarged cardiomediastinal contours.",
    ),
    "lung lesion": (
        "There is a lung lesion.",
        "A pulmonary nodule is seen.",
        "A lung mass is present.",
        "Multiple pulmonary nodules.",
        "Mass in the right upper lobe.",
    ),
    "lung opacity": (
        "There is a lung opacity.",
        "Patchy opacity at the lung base.",
        "Bilateral lung opacities.",
        "Hazy opacity in the right lung.",
        "Increased opacity in the left lower lung.",
    ),
    "pleural other": (
        "There is pleural thickening.",
        "Apical pleural thickening.",
        "Calcified pleural plaques.",
        "Pleural scarring.",
        "Chronic pleural thickening at the lung base.",
    ),
    "fracture": (
        "There is a fracture.",
        "Rib fracture.",
        "Healed rib fractures.",
        "Displaced fracture of a rib.",
        "Compression fracture of a vertebral body.",
    ),
    "support devices": (
        "Support devices are in place.",
        "An endotracheal tube is in place.",
        "A central venous catheter ends in the superior vena cava.",
        "A pacemaker with leads is in place.",
        "A nasogastric tube courses into the stomach.",
    ),
    "infiltration": (
        "There is an infiltrate.",
        "Patchy infiltrate at the lung base.",
        "Bilateral interstitial infiltrates.",
        "Infiltrate in the right lung.",
        "Infiltrate in the left lung.",
    ),
    "mass": (
        "There is a mass.",
        "A lung mass is present.",
        "Mass in the right upper lobe.",
        "Large mass in the left lung.",
        "A hilar mass is seen.",
    ),
    "nodule": (
        "There is a nodule.",
        "A pulmonary nodule is seen.",
        "Small nodule in the right lung.",
        "Small nodule in the left lung.",
        "Multiple pulmonary nodules.",
    ),
    "emphysema": (
        "There is emphysema.",
        "Hyperinflated lungs with flattened diaphragms, consistent with emphysema.",
        "Emphysematous changes in both upper lobes.",
        "Severe emphysema.",
        "Chronic obstructive pulmonary disease with emphysema.",
    ),
    "fibrosis": (
        "There is fibrosis.",
        "Pulmonary fibrosis.",
        "Reticular opacities at the bases, consistent with fibrosis.",
        "Chronic interstitial changes from fibrosis.",
        "Fibrotic scarring in the upper lobes.",
    ),
    "pleural thickening": (
        "There is pleural thickening.",
        "Apical pleural thickening.",
        "Right pleural thickening.",
        "Left pleural thickening.",
        "Chronic pleural thickening at the lung base.",
    ),
    "hernia": (
        "There is a hernia.",
        "Hiatal hernia.",
        "Large hiatal hernia.",
        "A retrocardiac opacity with an air-fluid level, consistent with a hiatal hernia.",
        "Diaphragmatic hernia.",
    ),
    "covid-19": (
        "Findings are consistent with COVID-19.",
        "Bilateral peripheral opacities suggesting viral pneumonia.",
        "Patchy ground-glass opacities in both lungs, typical of COVID-19.",
        "Multifocal bilateral opacities from COVID-19 pneumonia.",
        "Peripheral and basilar opacities, concerning for COVID-19.",
    ),
}  # fmt: skip
SAME_AS = {
    "no finding": NORMAL,
    "effusion": "pleural effusion",
    "pulmonary edema": "edema",
    "tb": "tuberculosis",
    "covid": "covid-19",
    "opacity": "lung opacity",
}


def prompts_of(name: str, prompts: Prompts = PROMPTS) -> tuple[str, ...]:
    """Return a class's sentences; raises ValueError where there are none."""
    key = name.lower().replace("_", " ").strip()
    found = prompts.get(key) or prompts.get(SAME_AS.get(key, ""))
    if not found:
        raise ValueError(f"there are no prompts for the class {name!r}; give a YAML file of them by class (--prompts)")
    return found


def has_prompts(classes: Iterable[str], prompts: Prompts = PROMPTS) -> bool:
    """Whether there are sentences for each class."""
    keys = [name.lower().replace("_", " ").strip() for name in classes]
    return all(key in prompts or SAME_AS.get(key) in prompts for key in keys)


def is_normal(name: str) -> bool:
    """Whether a class is the absence of findings."""
    key = name.lower().replace("_", " ").strip()
    return SAME_AS.get(key, key) == NORMAL


def prompt_hash(prompts: Mapping[str, Sequence[str]]) -> str:
    """Return 16 hex digits of classes and sentences: of other ones, and of the same ones in another order, another."""
    text = json.dumps({name: list(own) for name, own in prompts.items()}, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_prompts(path: Path) -> Prompts:
    """Read a YAML file {class: [sentence, ...]}, whose classes take the place of ours or join them.

    Raises ValueError where it is something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the prompts' file cannot be read ({type(error).__name__}); it must be YAML") from None
    if not isinstance(values, dict) or not values or not all(map(_is_class, values, values.values())):
        raise ValueError("the prompts' file must hold, for each class by name, a list of one or more sentences")
    return {**PROMPTS, **{name.lower().strip(): tuple(own) for name, own in values.items()}}


def _is_class(name: object, own: object) -> bool:
    sentences = own if isinstance(own, list) else []
    return isinstance(name, str) and bool(sentences) and all(isinstance(one, str) and one.strip() for one in sentences)
