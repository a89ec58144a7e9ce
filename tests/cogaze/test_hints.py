"""Hints: the most similar training study of somebody else, the diseases that the encoder predicts, found once."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from processes import in_processes

from cogaze import hints as hints_module
from cogaze.data.chat import PromptConfig
from cogaze.data.collate import Collate
from cogaze.data.dataset import CorruptSampleError, DatasetConfig, ShardDataset, read_folder, read_table
from cogaze.data.targets import TargetConfig, chosen, read_targets
from cogaze.evaluate.encoder import load_encoder
from cogaze.evaluate.held_out import ShardImages
from cogaze.evaluate.similarity import Embedded, Similarity
from cogaze.hints import Found, Looker, Whose, hints, nearest, read_found
from gazeprep.schema import CHEXPERT_LABELS

ORIGIN = {"of": "a test"}


def similarity(queries, candidates):
    return Similarity(Embedded.of(np.asarray(queries, float)), Embedded.of(np.asarray(candidates, float)))


def whose(subject, study):
    return Whose(np.array(subject), np.array(study))


def test_the_nearest_is_of_another_subject_and_another_study_and_the_first_of_equals():
    candidates = [[1, 0], [0.9, 0.1], [0.9, 0.1], [0, 1]]
    them = whose([0, 1, 2, 3], [0, 10, 20, 30])
    asked = whose([0, 1, 7, 0], [5, 10, 20, 20])
    found = nearest(similarity([[1, 0]] * 4, candidates), asked, them)
    # the subject's own first; its second too; a stranger whose study is the third's; neither the first nor the third
    assert found.tolist() == [1, 0, 0, 1]


def test_there_is_none_where_all_are_ones_own():
    assert nearest(similarity([[1, 0]], [[1, 0], [0, 1]]), whose([0], [4]), whose([0, 1], [3, 4])).tolist() == [-1]


@pytest.mark.parametrize("memory_bytes", [1, 500, 2**28])
def test_the_nearest_equals_a_search_one_by_one(memory_bytes):
    rng = np.random.default_rng(0)
    queries, candidates = rng.integers(-1, 2, (40, 3)), rng.integers(-1, 2, (60, 3))  # many are equally similar
    queries[(queries == 0).all(axis=1)] = candidates[(candidates == 0).all(axis=1)] = 1
    asked, them = (whose(rng.integers(0, 9, n), rng.integers(0, 25, n)) for n in (40, 60))
    expected = []
    for row, one in enumerate(queries):
        cosines = [
            -2.0
            if asked.subject[row] == them.subject[place] or asked.study[row] == them.study[place]
            else round(float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)), 9)
            for place, other in enumerate(candidates)
        ]
        expected.append(cosines.index(max(cosines)) if max(cosines) > -2 else -1)
    assert nearest(similarity(queries, candidates), asked, them, memory_bytes=memory_bytes).tolist() == expected


# --- on shards


@pytest.fixture(scope="module")
def encoder(model_folder):
    return load_encoder(model_folder)


@pytest.fixture(scope="module")
def training(shards):
    return read_targets(shards, read_table(shards, "train"), TargetConfig())


@pytest.fixture(scope="module")
def asked(shards, training):
    return [training.table, read_table(shards, "test")]


def looker_of(encoder, shards, **changes):
    data = DatasetConfig(view=encoder.reader.view, skip_corrupt=True)
    made = Looker(
        encoder.model,
        "weights",
        lambda table: ShardDataset(shards, table, encoder.reader.grid, data),
        Collate(encoder.tokenizer, encoder.collate),
    )
    return replace(made, **changes)


def found_in(folder):
    rows = pq.read_table(folder / "hints.parquet").to_pylist()
    return {row["key"]: Found(row["similar"], tuple(row["diseases"])) for row in rows}


@pytest.mark.parametrize("by", ["report", "image"])
def test_hints_are_what_evaluation_says_of_the_same_images(encoder, shards, training, asked, tmp_path, by):
    prompt = PromptConfig(similar_by=by, disease_threshold=0.52)
    told = hints(looker_of(encoder, shards), str(shards), asked, training, prompt, [tmp_path])
    found = found_in(tmp_path)

    folder = read_folder(shards)
    index = folder.index if folder.index.index.name == "key" else folder.index.set_index("key")
    keys = [table.name(row) for table in asked for row in range(len(table))]
    candidates = [training.table.name(row) for row in range(len(training.table))]
    images = dict(zip(keys, encoder.images(_images(folder, keys, encoder), with_context=True), strict=True))
    reports = encoder.texts([training.text[key] for key in candidates])
    shown = reports if by == "report" else np.array([images[key] for key in candidates])
    logits = encoder.disease_logits(_images(folder, keys, encoder), with_context=True)
    own = 0
    for key, scores in zip(keys, logits, strict=True):
        cosines = shown @ images[key]
        theirs = index.loc[candidates]
        excluded = (theirs["subject"] == index.loc[key, "subject"]) | (theirs["study"] == index.loc[key, "study"])
        own += int(excluded.sum())
        cosines[excluded.to_numpy()] = -np.inf
        assert cosines[candidates.index(found[key].similar)] == pytest.approx(cosines.max(), abs=1e-5)
        assert told[key].similar == training.text[found[key].similar]
        likely = tuple(np.flatnonzero(1 / (1 + np.exp(-scores)) > 0.52).tolist())
        assert found[key].diseases == likely
        assert told[key].diseases == tuple(CHEXPERT_LABELS[place] for place in likely)
    assert own > len(candidates)  # some subjects have more than one
    assert {len(one.diseases) for one in found.values()} != {0}


def _images(folder, keys, encoder):
    return ShardImages(folder, keys, encoder.reader)


def test_what_was_found_is_kept_without_a_word_and_found_once(encoder, shards, training, asked, tmp_path, monkeypatch):
    looker, prompt = looker_of(encoder, shards), PromptConfig()
    first = hints(looker, str(shards), asked, training, prompt, [tmp_path / "run"])
    assert pq.read_schema(tmp_path / "run" / "hints.parquet").names == ["key", "similar", "diseases"]
    monkeypatch.setattr(hints_module, "looked_at", _nothing)
    again = [tmp_path / "run", tmp_path / "elsewhere"]
    assert hints(looker, str(shards), asked[1:], training, prompt, again) == {
        key: first[key] for key in map(asked[1].name, range(len(asked[1])))
    }
    assert not (tmp_path / "elsewhere").exists()
    other = [
        (replace(looker, sha256="others"), training, prompt),
        (looker, training, replace(prompt, similar_by="image")),
        (looker, replace(training, table=chosen(training.table, np.arange(4))), prompt),
    ]
    for changed in other:
        with pytest.raises(RuntimeError, match="looked"):
            hints(changed[0], str(shards), asked, *changed[1:], [tmp_path / "run"])
    validation = read_table(shards, "validate")
    with pytest.raises(RuntimeError, match="looked"):
        hints(looker, str(shards), [validation], training, prompt, [tmp_path / "run"])


def _nothing(*_):
    raise RuntimeError("looked")


def test_a_file_of_another_kind_is_looked_past(tmp_path):
    pd.DataFrame({"key": ["a"]}).to_parquet(tmp_path / "hints.parquet")
    assert read_found(tmp_path / "hints.parquet", ORIGIN) == {}


def test_a_sample_that_cannot_be_read_ends_the_search_or_is_told_nothing(encoder, shards, training, tmp_path):
    few = replace(training, table=chosen(training.table, np.arange(4)))
    length = few.table.length.copy()
    length[1, 0] -= 1
    damaged = replace(few, table=replace(few.table, length=length))
    key = damaged.table.name(1)
    with pytest.raises(CorruptSampleError, match=key):
        hints(looker_of(encoder, shards), str(shards), [damaged.table], damaged, PromptConfig(), [tmp_path])
    looker = looker_of(encoder, shards, skip_corrupt=True)
    hints(looker, str(shards), [damaged.table], damaged, PromptConfig(), [tmp_path])
    found = found_in(tmp_path)
    assert found[key] == Found("", ())
    assert key not in {one.similar for one in found.values()}


def _two_look(model_folder, shards, out):
    encoder = load_encoder(model_folder)
    training = read_targets(shards, read_table(shards, "train"), TargetConfig())
    asked = [training.table, read_table(shards, "test")]
    hints(looker_of(encoder, shards), str(shards), asked, training, PromptConfig(), [out])


@pytest.mark.slow
def test_two_processes_find_what_one_finds(model_folder, encoder, shards, training, asked, tmp_path):
    hints(looker_of(encoder, shards), str(shards), asked, training, PromptConfig(), [tmp_path / "one"])
    in_processes(_two_look, model_folder, shards, tmp_path / "two")
    assert found_in(tmp_path / "two") == found_in(tmp_path / "one")


def test_the_origin_is_plain(encoder, shards, training):
    origin = hints_module._origin(looker_of(encoder, shards), str(shards), training, PromptConfig())
    assert origin["collate"]["text"]["max_tokens"] == asdict(encoder.collate)["text"]["max_tokens"]
    assert not [value for value in map(str, origin.values()) if str(shards) in value]
