"""Earlier studies in a context prompt: the same text in training and evaluation, left out and moved with the rest."""

from dataclasses import replace

import numpy as np
import pytest
from recorded import SMALL, sources_of

from cogaze.data.collate import Collate, CollateConfig, TextConfig
from cogaze.data.dataset import DatasetConfig, ShardDataset, read_table
from cogaze.data.plan import PlanItem
from cogaze.data.transforms import ViewConfig
from cogaze.evaluate import control
from cogaze.evaluate.canvas import CanvasReader
from cogaze.evaluate.control import deal_out
from cogaze.evaluate.encoder import Encoder
from gazeprep.build import BuildConfig, build
from gazeprep.images import decode
from gazeprep.shards import ShardFolder

GRID = (4, 4)
CONFIG = DatasetConfig(ViewConfig(size_px=32))
ASKING = CollateConfig(TextConfig(context="[CLS] [INDICATION] {indication} [SEP] {prior}"))
PRIOR_SECTIONS = ("prior_findings", "prior_impression", "prior_last_paragraph")


@pytest.fixture(scope="module")
def dated(corpus, tmp_path_factory):
    """The images of the corpus, a subject with two studies among them, with earlier studies. Read only."""
    out = tmp_path_factory.mktemp("dated") / "out"
    sources = sources_of(corpus, reflacx=None, egd=None, prefer="jpg")
    build(BuildConfig(out, sources, replace(SMALL, prior=True), executor="inline"))
    return out


def dataset_of(root, config=CONFIG):
    return ShardDataset(root, read_table(root, "train"), GRID, config)


def examples_of(dataset, epoch=0):
    return [dataset[PlanItem(row, True, False, epoch)] for row in range(len(dataset))]


def prior_of(record):
    return next((record[name] for name in PRIOR_SECTIONS if record[name]), "")


def test_an_example_has_the_text_of_its_earlier_study(dated):
    folder = ShardFolder(dated)
    wanted = {key: prior_of(folder.sample(key).record) for key in folder.index["key"]}
    found = {example.key: example.sections["prior"] for example in examples_of(dataset_of(dated))}
    assert found == {key: wanted[key] for key in found}
    told = {key: text for key, text in found.items() if text}
    assert 0 < len(told) < len(found)
    assert {folder.row(key)["study"] for key in told} == {folder.index.loc[[*told], "study"].iloc[0]}


def test_shards_without_earlier_studies_say_so_to_the_prompt_alone(shards):
    assert "prior" not in dataset_of(shards)[PlanItem(0, True, False, 0)].sections
    assert dataset_of(shards)[PlanItem(-1, False, False, 0)].sections["prior"] == ""  # a filler stops nobody


def test_it_is_left_out_with_the_rest_of_the_context(dated):
    plain = dataset_of(dated)
    rows = [row for row, example in enumerate(examples_of(plain)) if example.sections["prior"]]
    dropping = dataset_of(dated, replace(CONFIG, context_dropout=0.5))
    seen = [dropping[PlanItem(row, True, False, epoch)].sections for row in rows for epoch in range(12)]
    assert {bool(sections["prior"]) for sections in seen} == {True, False}
    assert all(bool(sections["prior"]) == bool(sections["indication"]) for sections in seen)


def test_it_goes_with_the_context_that_is_dealt_out(dated, tmp_path):
    deal_out(dated, tmp_path / "dealt", seed=0, dealt="image and context")
    before, after = ShardFolder(dated), ShardFolder(tmp_path / "dealt")
    context = ("indication", "prior_study", "prior_days", *PRIOR_SECTIONS)
    told = {tuple(before.sample(key).record[name] for name in context) for key in before.index["key"]}
    dealt = [after.sample(key).record for key in after.index["key"]]
    assert {tuple(record[name] for name in context) for record in dealt} <= told
    assert any(record["prior_study"] for record in dealt)


def test_a_study_is_dealt_no_context_that_tells_its_own_report(dated, tmp_path, monkeypatch):
    index = ShardFolder(dated).index.query("split == 'train'")
    records = [ShardFolder(dated).sample(key).record for key in index["key"]]
    later = next(record for record in records if record["prior_study"])
    first = next(record for record in records if record["study_id"] == later["prior_study"])
    donors = {record["key"]: record["key"] for record in records} | {first["key"]: later["key"]}
    monkeypatch.setattr(control, "_donors", lambda *_: donors)
    deal_out(dated, tmp_path / "dealt", seed=0, dealt="image and context")
    dealt = ShardFolder(tmp_path / "dealt").sample(first["key"]).record
    assert dealt["indication"] == later["indication"]
    assert (dealt["prior_study"], dealt["prior_days"], prior_of(dealt)) == ("", -1.0, "")
    assert prior_of(ShardFolder(tmp_path / "dealt").sample(later["key"]).record) == prior_of(later) != ""


class Shower:
    """What of an encoder brings a batch to tensors, without a model."""

    shown, tokens = Encoder.shown, Encoder.tokens

    def __init__(self, tokenizer, collate):
        self.tokenizer, self.collate, self.device = tokenizer, collate, "cpu"


def canvases_of(root):
    reader, folder = CanvasReader(CONFIG.view, GRID), ShardFolder(root)
    samples = [folder.sample(key) for key in folder.index.query("split == 'train'")["key"]]
    return [reader.stored(sample.record, decode(sample.image)) for sample in samples]


def test_evaluation_sees_the_same_context_as_training(dated, tokenizer):
    trained = Collate(tokenizer, ASKING)(examples_of(dataset_of(dated)))
    shown = Shower(tokenizer, ASKING).shown(canvases_of(dated), with_context=True)
    assert np.array_equal(shown.context.ids, trained.context_input_ids)
    assert np.array_equal(shown.has_context, trained.has_context)
    assert not Shower(tokenizer, ASKING).shown(canvases_of(dated)).has_context.any()


def test_evaluation_refuses_shards_without_what_the_prompt_asks_for(shards, tokenizer):
    with pytest.raises(ValueError, match="the shards were built without earlier studies"):
        Shower(tokenizer, ASKING).shown(canvases_of(shards)[:1], with_context=True)
    Shower(tokenizer, CollateConfig()).shown(canvases_of(shards)[:1], with_context=True)
