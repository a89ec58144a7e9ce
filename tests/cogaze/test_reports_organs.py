"""Structured reports scored by heading: against SRRG's rules worked out by hand and by scikit-learn."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import precision_recall_fscore_support

from cogaze.evaluate.reports.organs import StructuredScorer, rouge_f1, stripped
from cogaze.evaluate.reports.overlap import Overlap
from cogaze.evaluate.reports.score import ScoreConfig, score
from cogaze.evaluate.reports.scorers import Reports
from cogaze.evaluate.reports.structured import ORGANS, as_published, serialize
from cogaze.evaluate.results import NotRunError
from cogaze.evaluate.scores import Intervals

LUNGS, PLEURA, HEART = ORGANS[:3]
CLEAR = "The lungs are well expanded and clear."
AIR = "There is a small right apical pneumothorax."


def reports(*pairs):
    written = [[one if isinstance(one, str) else serialize(one) for one in pair] for pair in pairs]
    keys = tuple(f"key{number}" for number in range(len(pairs)))
    return Reports(keys, tuple(one for one, _ in written), tuple(one for _, one in written), np.array(keys))


def scored(*pairs, **options):
    return StructuredScorer(**options).score(reports(*pairs), Intervals(20))


def figures(*pairs, **options):
    return {one.name: one.value for one in scored(*pairs, **options).figures}


def test_the_same_report_scores_one_and_no_heading_that_only_one_has_scores():
    same = {LUNGS: [CLEAR], PLEURA: [AIR]}
    assert figures((same, same))["BLEU-4, every heading"] == pytest.approx(1, abs=1e-6)
    found = figures((same, {LUNGS: [CLEAR], HEART: ["Normal heart size."]}))
    assert found["ROUGE-L, every heading"] == pytest.approx(1 / 3)  # lungs 1, pleura missing 0, heart not asked for 0
    assert found[f"ROUGE-L, {PLEURA}"] == found[f"ROUGE-L, {HEART}"] == 0
    assert found[f"BLEU-4, {LUNGS}"] == pytest.approx(1, abs=1e-6)
    assert f"ROUGE-L, {ORGANS[-1]}" not in found


def test_every_heading_counts_alike_or_every_organ_does():
    both, one = {LUNGS: [CLEAR], PLEURA: [AIR]}, {LUNGS: [CLEAR]}
    found = figures((one, one), (one, one), (both, one))
    assert found["ROUGE-L, every heading"] == pytest.approx(3 / 4)
    assert found["ROUGE-L, mean of organs"] == pytest.approx((1 + 0) / 2)


def test_bullets_are_compared_at_once_or_one_by_one():
    there, said = {LUNGS: [CLEAR, "No mass."]}, {LUNGS: ["No mass.", CLEAR]}
    assert figures((there, said))["ROUGE-L, every heading"] == pytest.approx(2 * 7 / 18)
    assert figures((there, said), aligned=True)["ROUGE-L, every heading"] == 0
    # What the text has more of is cut; what it lacks is "No findings", which shares a word with "No mass."
    assert figures((there, {LUNGS: [CLEAR, "No mass.", AIR]}), aligned=True)["ROUGE-L, every heading"] == 1
    assert figures((there, {LUNGS: [CLEAR]}), aligned=True)["ROUGE-L, every heading"] == pytest.approx((1 + 0.5) / 2)


def test_aligned_bleu_is_of_all_bullets_of_a_heading_together():
    there, said = {LUNGS: [CLEAR, AIR]}, {LUNGS: [CLEAR, "No mass seen anywhere in the right chest."]}
    plain = Reports(("a", "b"), tuple(there[LUNGS]), tuple(said[LUNGS]), np.array(["a", "b"]), "whitespace")
    together = {one.name: one.value for one in Overlap().score(plain, Intervals(0)).figures}["BLEU-4"]
    assert figures((there, said), aligned=True)["BLEU-4, every heading"] == pytest.approx(together)


def test_rouge_is_the_f1_of_the_longest_common_words():
    assert rouge_f1("A 4-mm nodule, unchanged", "the 4 mm NODULE is unchanged.") == pytest.approx(2 * 4 / 11)
    assert rouge_f1("", "x") == rouge_f1("x", "") == 0


def test_headings_are_scored_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    there, said = (rng.random((2, 12, 8)) < 0.4).astype(int)
    there[0] = there[1] = [1, *[0] * 7]
    said[1] = 0  # nothing is said

    def written(row):
        return {organ: [CLEAR] for organ, has in zip(ORGANS, row, strict=True) if has}

    found = figures(*((written(one), written(other)) for one, other in zip(there, said, strict=True)))
    expected = precision_recall_fscore_support(there, said, average="samples", zero_division=0)[:3]
    names = ("precision", "recall", "F1")
    assert [found[f"headings, {name}"] for name in names] == pytest.approx(expected)
    by_organ = precision_recall_fscore_support(there, said, average=None, zero_division=0)[:3]
    for name, values in zip(names, by_organ, strict=True):
        of_each = [np.nan_to_num(found[f"headings, {name}, {organ}"]) for organ in ORGANS]
        assert of_each == pytest.approx(values)


def test_each_report_has_its_own_scores_and_none_where_it_has_no_heading():
    same = {LUNGS: [CLEAR]}
    found = scored((same, same), (same, "The lungs are clear."), ("Clear.", ""))
    assert found.columns["structured ROUGE-L"] == pytest.approx([1, 0, np.nan], nan_ok=True)
    assert found.columns[f"structured BLEU-4, {PLEURA}"] == pytest.approx([np.nan] * 3, nan_ok=True)
    assert found.columns["headings, F1"] == pytest.approx([1, 0, 0])
    assert found.notes["texts without a heading"] == 2
    assert found.notes["texts: pieces left out"] == {"unknown line": 1}
    assert found.notes["F1-SRR-BERT"].startswith("not run: needs StanfordAIMI/SRR-BERT-Leaves")


def test_figures_have_intervals_and_the_number_of_their_reports():
    same, other = {LUNGS: [CLEAR], PLEURA: [AIR]}, {LUNGS: [AIR]}
    found = {one.name: one for one in scored((same, same), (same, other), (other, other)).figures}
    assert found["ROUGE-L, every heading"].n == 3
    assert found[f"ROUGE-L, {PLEURA}"].n == 2
    assert found["ROUGE-L, every heading"].low < found["ROUGE-L, every heading"].value
    assert found["ROUGE-L, every heading"].high == 1


def test_an_impression_has_no_headings_to_be_of():
    found = figures(("1. Clear lungs.\n2. No edema.", "1. Clear lungs."), part="impression")
    assert found["ROUGE-L, every heading"] == pytest.approx(2 * 2 / 6)
    assert found["headings, F1"] == 1
    assert not [name for name in found if "organ" in name or name.endswith("Impression")]


def test_free_text_is_not_scored_and_one_line_is_told():
    with pytest.raises(NotRunError, match="as SRRG has them"):
        scored(("The lungs are clear.", "x"))
    one_line = "Pleura: - No effusion."
    with pytest.raises(NotRunError, match="by rules tolerant"):
        scored((one_line, one_line))
    assert figures((one_line, one_line), rules="tolerant")["ROUGE-L, every heading"] == 1


def test_stemming_needs_its_package():
    pair = ({PLEURA: ["Effusions are increasing."]}, {PLEURA: ["Effusion increased."]})
    assert figures(pair)["ROUGE-L, every heading"] == 0
    if importlib.util.find_spec("rouge_score") is None:
        with pytest.raises(NotRunError, match="pip install rouge-score"):
            figures(pair, rouge="stemmed")
    else:
        assert figures(pair, rouge="stemmed")["ROUGE-L, every heading"] == pytest.approx(2 * 2 / 5)


def test_the_command_scores_structured_reports_and_says_what_free_text_is(tmp_path):
    same = serialize({LUNGS: [CLEAR], PLEURA: [AIR]})
    for name, reference in {"srrg": same, "free": CLEAR}.items():
        rows = [json.dumps({"reference": reference, "text": same}) for _ in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
        config = ScoreConfig(tmp_path / f"{name}.jsonl", tmp_path / name, scorers=("structured",), repeats=5)
        outcome = score(config).outcomes["structured"]
        assert outcome.error.startswith("not run: no reference is a structured report") == (name == "free")
    of_srrg = json.loads((tmp_path / "srrg/results.json").read_text())["results"]["structured"]
    first = of_srrg["figures"][0]
    assert (first["name"], first["n"]) == ("BLEU-4, every heading", 3)
    assert first["value"] == first["baselines"]["ceiling"] == pytest.approx(1)
    assert of_srrg["notes"]["read"] == "findings by the official rules; bullets compared all of a heading at once"
    assert "structured ROUGE-L, Pleura" in pq.read_schema(tmp_path / "srrg/scores.parquet").names


# --- CoGaze's own way

TWO = {LUNGS: ["A 4-mm nodule.", "No edema."], PLEURA: ["Clear."]}


def test_the_published_way_strips_headings_and_cuts_at_every_hyphen():
    assert as_published(serialize(TWO)) == "A 4 mm nodule . No edema . Clear ."
    assert as_published("Lungs and Airways: - a") == ""  # a blank before the hyphen, and nothing is left
    assert as_published("lost Pleura:- kept, na\u00efve-ly") == "kept, nave ly"


def test_the_published_way_is_an_option():
    other = replace(StructuredScorer(), as_published=True)
    pairs = reports((TWO, {**TWO, PLEURA: ["Not clear at all."]}), ({PLEURA: ["Clear."]}, "Clear."))
    found = {one.name: one.value for one in other.score(pairs, Intervals(0)).figures}
    plain = {one.name: one.value for one in Overlap().score(stripped(pairs), Intervals(0)).figures}
    assert {f"as CoGaze published, {name}": value for name, value in plain.items()}.items() <= found.items()
    assert found["as CoGaze published, BLEU-1"] > 0
    assert not [one for one in figures((TWO, TWO)) if "published" in one]
