"""Every benchmark's twin through the evaluators that fit it."""

import json

import pytest
from twins import chexpert, covidx, mimic, nih, openi, rsna, shenzhen, siim, tbx11k

from cogaze.evaluate.evaluation import EvaluateConfig, evaluate


def write_rsna(root, lists):
    rsna.write_rsna(root, lists, patients=40)


def write_siim(root, lists):
    images = siim.cast()
    siim.write_dicom_tree(root, images)
    siim.write_names(root, images)
    siim.write_benchx(lists, images)


def write_nih(root, lists):
    nih.write_nih(root)
    nih.write_benchx(lists)


def write_chexpert(root, lists):
    chexpert.write_chexpert(root)
    chexpert.write_convirt(lists)


def write_tbx11k(root, lists):
    tbx11k.write_simplified(root)
    tbx11k.write_lists_of(lists)


# How its twin is written, whether its lists are given, its options, and which evaluators it is fit for.
TRAINED = {"zero_shot", "linear_probe"}
CASES = {
    "rsna": (write_rsna, True, {}, TRAINED | {"segmentation"}),
    "siim": (write_siim, True, {}, TRAINED | {"segmentation"}),
    "nih": (write_nih, True, {}, TRAINED),
    "chexpert": (write_chexpert, False, {}, TRAINED),
    "chexpert_5x200": (write_chexpert, False, {"per_class": 5}, {"zero_shot"}),
    "chexpert_8x200": (write_chexpert, True, {}, {"retrieval"}),
    "mimic_5x200": (lambda root, _: mimic.write_mimic(root), False, {"per_class": 3}, {"zero_shot", "retrieval"}),
    "tbx11k": (write_tbx11k, True, {}, TRAINED),
    "shenzhen": (shenzhen.write_shenzhen, True, {}, {"zero_shot", "linear_probe", "retrieval"}),
    "covidx": (covidx.write_covidx, False, {}, {"linear_probe"}),
    "openi": (lambda root, _: openi.write_openi(root), False, {}, {"retrieval"}),
}


@pytest.mark.slow  # a second for each set
@pytest.mark.parametrize("dataset", CASES)
def test_a_twin_is_evaluated(dataset, model_folder, tmp_path):
    write, with_lists, options, expected = CASES[dataset]
    write(tmp_path / "release", tmp_path / "lists")
    config = EvaluateConfig(
        model_folder,
        tmp_path / "out",
        dataset=dataset,
        root=tmp_path / "release",
        lists=tmp_path / "lists" if with_lists else None,
        options=options,
        shares=("100",),
        repeats=5,
    )
    results = evaluate(config)
    told = (tmp_path / "out" / "results.json").read_text()
    assert not results.failed, told
    found = json.loads(told)
    assert set(found["results"]) >= expected
    assert all(one["figures"] for one in found["results"].values())
    assert found["settings"]["who split it"]
    assert str(tmp_path) not in told
