"""Splits: who decides, leaks, the hash, and that no subject ever stands in two."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import Tables

from gazeprep.cases import Sources, collect
from gazeprep.schema import SPLITS, InputError
from gazeprep.shards import ShardFolder
from gazeprep.splits import ORIGINS, Assigned, Claim, HashSplit, assign_splits, hash_split

CLAIMS = st.lists(
    st.builds(Claim, st.sampled_from(["a", "b", "c"]), st.sampled_from(SPLITS), st.sampled_from(ORIGINS[:3])),
    max_size=8,
)


@pytest.mark.parametrize(
    ("origins", "decided"),
    [
        (["source", "reflacx", "mimic-cxr"], Assigned("train", "mimic-cxr")),
        (["source", "reflacx"], Assigned("validate", "reflacx")),
        (["source"], Assigned("test", "source")),
        ([], Assigned("train", "hash")),
    ],
)
def test_the_first_origin_that_knows_a_subject_decides(origins, decided):
    said = {"mimic-cxr": "train", "reflacx": "validate", "source": "test"}
    claims = [Claim("a", said[origin], origin) for origin in origins]
    assert assign_splits(["a", "a"], claims, HashSplit(0, 0))["a"] == decided


def test_a_subject_in_two_splits_is_an_error_where_it_is_decided():
    claims = [Claim("a", "train", "reflacx"), Claim("a", "test", "reflacx"), Claim("b", "test", "reflacx")]
    with pytest.raises(
        InputError, match=r"1 of 2 subjects stand in two splits \(said by reflacx\); give every"
    ) as error:
        assign_splits(["a", "b"], claims)
    assert error.value.reason == "split_leak"


def test_origins_that_do_not_decide_may_disagree():
    claims = [Claim("a", "train", "source"), Claim("a", "test", "source"), Claim("a", "validate", "mimic-cxr")]
    assert assign_splits(["a"], claims)["a"] == Assigned("validate", "mimic-cxr")


def test_hash_splits_never_change():
    splits = [hash_split(str(10000000 + i), HashSplit()) for i in range(18)]
    assert " ".join(split[:2] for split in splits) == "tr tr tr tr tr tr tr tr tr va te tr te tr te tr tr te"
    assert hash_split("10000000", HashSplit(validate=1, test=0)) == "validate"
    assert hash_split("10000000", HashSplit(validate=0, test=1)) == "test"


def test_hash_splits_have_their_shares_and_differ_by_seed():
    subjects = [f"subject {i}" for i in range(10_000)]
    splits = {seed: np.array([hash_split(s, HashSplit(seed=seed)) for s in subjects]) for seed in (0, 1)}
    for made in splits.values():
        assert [np.mean(made == split) for split in SPLITS] == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    assert np.mean(splits[0] != splits[1]) == pytest.approx(1 - 0.8**2 - 2 * 0.1**2, abs=0.02)


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.6, 0.5), (float("nan"), 0.1)])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ValueError, match="must be shares of 1"):
        HashSplit(*shares)


@given(CLAIMS)
def test_claims_give_each_subject_one_split_or_an_error(claims):
    subjects = ["a", "b", "c"]
    of_deciding = {}
    for subject in subjects:
        by_origin = [{c.split for c in claims if (c.subject_id, c.origin) == (subject, origin)} for origin in ORIGINS]
        of_deciding[subject] = next(filter(None, by_origin), set())
    if any(len(said) > 1 for said in of_deciding.values()):
        with pytest.raises(InputError):
            assign_splits(subjects, claims)
        return
    for subject, assigned in assign_splits(subjects, claims).items():
        assert {assigned.split} == (of_deciding[subject] or {hash_split(subject, HashSplit())})


ROWS = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["", *SPLITS])), min_size=1, max_size=12)


@given(ROWS, st.integers())
@settings(max_examples=40, deadline=None)
def test_no_subject_is_ever_in_two_splits(tmp_path_factory, rows, seed):
    tables = Tables(tmp_path_factory.mktemp("tables"))
    for i, (subject, split) in enumerate(rows):
        tables.image(f"im{i}", subject, split)
    named = {subject: {split for own, split in rows if own == subject and split} for subject, _ in rows}
    sources, by_hash = Sources(table=tables.source()), HashSplit(seed=seed)
    if any(len(splits) > 1 for splits in named.values()):
        with pytest.raises(InputError, match="subjects stand in two splits"):
            collect(sources, by_hash)
        return
    cases = collect(sources, by_hash).cases
    assert len(cases) == len(rows)
    for subject, splits in named.items():
        given_to = {case.split for case in cases if case.subject_id == subject}
        assert len(given_to) == 1
        assert splits in (given_to, set())


def test_every_build_of_the_corpus_keeps_subjects_apart(shards):
    index = ShardFolder(shards).index
    assert (index.groupby("subject")["split"].nunique() == 1).all()
    assert (index["shard"].str.split("/").str[0] == index["split"]).all()
    assert set(index["split"]) == set(SPLITS)
