"""Report writing end to end on tiny parts: what is learned, trained as anything else, written once of every study."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import PartialState
from processes import in_processes
from runs import assert_close, assert_same, log, weights
from safetensors.torch import load_file
from transformers import AutoTokenizer
from writing import CASES, PX, learn, pretrain, report_config

from cogaze.data.dataset import CorruptSampleError, DatasetConfig, ShardDataset, read_table
from cogaze.data.lines import PlainScript
from cogaze.data.plan import PlanItem
from cogaze.data.targets import JSON, TargetConfig, read_targets
from cogaze.data.transforms import View, on_picture
from cogaze.evaluate.encoder import load_encoder
from cogaze.evaluate.held_out import ShardImages
from cogaze.fit import fit
from cogaze.generate import BeamConfig, GenerateConfig, generate
from cogaze.losses.words import IGNORED, token_nll_sum
from cogaze.models.report import ReportModel
from cogaze.report_config import DecoderConfig
from cogaze.writer import Writer, load_writer
from gazeprep.shards import ShardFolder

GREEDY = BeamConfig(beams=1)


@pytest.fixture(scope="module")
def trained(parts, reports, tmp_path_factory):
    """A run of four steps."""
    config = report_config(parts, reports, tmp_path_factory.mktemp("run") / "whole")
    learn(config)
    return config


def written(trained, reports, out, **changes):
    PartialState._reset_state()
    return generate(GenerateConfig(model=trained.out / "model", shards=str(reports), out=out, **changes))


# --- training


def test_a_run_exports_what_writes(trained, reports):
    writer = load_writer(trained.out / "model")
    assert (writer.target, writer.view) == (trained.target, trained.data.view)
    stated = json.loads((trained.out / "model" / "run.json").read_text())
    assert stated["method"] == "report"
    assert not [value for value in json.dumps(stated).split('"') if value.startswith("/")]
    assert "validate/words" in log(trained)[4]


def test_all_but_the_vision_tower_is_trained_and_every_trained_weight_moves(trained, parts):
    before = ReportModel.from_pretrained(trained.out / "best")
    names = {name for name, one in before.named_parameters() if one.requires_grad}
    still = ("encoder.vision.", "encoder.vision_head.", "encoder.report_head.", "encoder.logit_scale")
    assert names == {name for name, _ in before.named_parameters() if not name.startswith(still)}
    learned = weights(trained)
    for name, tensor in load_file(parts / "model" / "model.safetensors").items():
        moved = not torch.equal(learned[f"encoder.{name}"], tensor)
        embedding = "embeddings" in name or name == "image_projector.view_embedding.weight"
        assert moved == (f"encoder.{name}" in names) or embedding, name


def test_micro_batches_are_one_batch(trained, parts, reports, tmp_path):
    two = report_config(parts, reports, tmp_path / "two", {"fit.accumulation": 2})
    shutil.rmtree(tmp_path / "two", ignore_errors=True)
    learn(two)
    assert_close(weights(trained), weights(two))


def test_a_stopped_run_goes_on_bit_for_bit(trained, parts, reports, tmp_path):
    half = report_config(parts, reports, tmp_path / "half", {"fit.max_steps": 3, "fit.save_every": 3})
    learn(half)
    shutil.rmtree(tmp_path / "half" / "model")
    whole = replace(half, fit=replace(half.fit, max_steps=0))
    learn(whole)
    assert_same(weights(trained), weights(whole))


def test_another_encoder_is_not_gone_on_with(parts, reports, tmp_path):
    learn(report_config(parts, reports, tmp_path / "run", {"fit.max_steps": 1}))
    other = report_config(parts, reports, tmp_path / "run")
    other = replace(other, model=replace(other.model, encoder_sha256="another"))
    with pytest.raises(ValueError, match=r"model\.encoder_sha256"):
        learn(other)


def test_the_decoder_has_a_rate_of_its_own(parts, reports, tmp_path):
    config = report_config(parts, reports, tmp_path / "run", {"fit.max_steps": 1, "optim.decoder_times": 10.0})
    learn(config)
    state = json.loads((next((tmp_path / "run" / "checkpoints").iterdir()) / "state.json").read_text())
    rates = {round(group["lr"], 6) for group in state["optimizer_groups"]}
    assert rates == {1e-3, 1e-2}


def test_a_decoder_of_other_tokens_is_refused(parts, reports, tmp_path, bare_tokenizers):
    shutil.copytree(parts / "decoder", tmp_path / "decoder")
    for file in bare_tokenizers["wordpiece"].iterdir():
        shutil.copy(file, tmp_path / "decoder")
    wrong = report_config(parts, reports, tmp_path / "run", {"decoder.name": str(tmp_path / "decoder")})
    with pytest.raises(ValueError, match=r"tokens have another number .* set decoder\.start to random"):
        learn(wrong)
    learn(report_config(
        parts, reports, tmp_path / "run",
        {"decoder.name": str(tmp_path / "decoder"), "decoder.start": "random", "fit.max_steps": 1},
    ))  # fmt: skip


def test_a_model_that_writes_is_trained_further_or_gives_its_encoder(trained, parts, reports, tmp_path):
    changes = {"model": trained.out / "model", "fit.max_steps": 1, "optim.lr": 1e-12}
    further = report_config(parts, reports, tmp_path / "a", {**changes, "decoder": DecoderConfig(start="model")})
    other = report_config(parts, reports, tmp_path / "b", changes)
    learn(further)
    learn(other)
    for name, tensor in weights(trained).items():
        torch.testing.assert_close(weights(further)[name], tensor, atol=1e-6, rtol=1e-6, msg=name)
        if name.startswith("encoder."):
            torch.testing.assert_close(weights(other)[name], tensor, atol=1e-6, rtol=1e-6, msg=name)
    new = "decoder.model.transformer.h.0.crossattention.c_attn.weight"
    assert (weights(other)[new] - weights(trained)[new]).abs().max() > 1e-3  # steps


def test_a_moving_average_is_exported_as_it_was_validated(parts, reports, tmp_path):
    config = report_config(parts, reports, tmp_path / "run", {"optim.ema_decay": 0.5, "optim.lr": 1e-2})
    learn(config)
    model = ReportModel.from_pretrained(tmp_path / "run" / "model")
    assert model.decoder.model.lm_head.weight is model.decoder.model.transformer.wte.weight
    writer = load_writer(tmp_path / "run" / "model")
    targets = read_targets(reports, read_table(reports, "validate"), writer.target)
    assert _loss(writer, _batch(writer, reports, targets)) == pytest.approx(log(config)[4]["validate/words"], rel=1e-5)


@pytest.mark.parametrize(("first", "then"), [("encoder", "tower"), ("tower", "encoder")])
def test_what_is_frozen_is_what_this_run_says(parts, reports, tmp_path, first, then):
    learn(report_config(parts, reports, tmp_path / "a", {"frozen": first, "fit.max_steps": 1}))
    changes = {"model": tmp_path / "a" / "model", "frozen": then, "fit.max_steps": 1}
    learn(report_config(parts, reports, tmp_path / "b", {**changes, "decoder": DecoderConfig(start="model")}))
    model = ReportModel.from_pretrained(tmp_path / "b" / "model")
    trained = {name for name, one in model.named_parameters() if one.requires_grad and name.startswith("encoder.")}
    assert bool(trained) == (then == "tower")


def test_what_looks_like_a_special_token_in_a_report_is_text(parts):
    script = PlainScript(AutoTokenizer.from_pretrained(parts / "model"), max_tokens=60)
    text = "see [SEP] and [PAD] and <|endoftext|> here"
    lines = script.taught(["a"], [text])
    assert lines.labels.tolist()[0].count(script.end) == 1
    assert script.read(lines.labels) == [text]


def test_options_of_another_decoder_are_refused(parts, reports, tmp_path):
    with pytest.raises(ValueError, match=r"decoder\.four_bit: no option of kind cross_attention"):
        report_config(parts, reports, tmp_path, {"decoder.four_bit": True})
    with pytest.raises(ValueError, match="prompt is what a language model is told"):
        report_config(parts, reports, tmp_path, {"prompt.system": "Be brief."})


def test_a_folder_without_weights_is_refused(parts, reports, tmp_path):
    shutil.copytree(parts / "model", tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ValueError, match="the model's folder holds no weights"):
        report_config(parts, reports, tmp_path / "run", {"model": tmp_path / "model"})


def test_the_card_and_the_config_say_what_is_true(trained):
    card = " ".join((trained.out / "model" / "README.md").read_text().split())
    assert "its encoder is a pretrained CoGaze" in card
    assert "nothing else" not in card
    model = json.loads((trained.out / "model" / "run.json").read_text())["model"]
    assert set(model) == {
        "tokenizer", "tuned_blocks", "encoder", "encoder_sha256", "decoder", "decoder_sha256", "frozen"
    }  # fmt: skip


def test_a_text_longer_than_the_decoder_s_positions_is_refused_before_the_first_step(parts, reports, tmp_path):
    with pytest.raises(ValueError, match="a text may have 65 tokens, but the decoder has 64 positions"):
        learn(report_config(parts, reports, tmp_path / "run", {"target.max_tokens": 65}))


def test_nor_is_one_searched_for(trained, reports, tmp_path):
    with pytest.raises(ValueError, match="a text may have 99 tokens, but the decoder has 64 positions"):
        written(trained, reports, tmp_path / "out", search=BeamConfig(max_tokens=99))


def test_a_decoder_is_not_taken_from_a_model_that_has_none(parts, reports, tmp_path):
    with pytest.raises(ValueError, match=r"decoder\.start is model, which trains a GPT-2's report model further"):
        report_config(parts, reports, tmp_path / "run", {"decoder": DecoderConfig(start="model")})


def _two_learn(config):
    fit(config)


@pytest.mark.slow
def test_two_processes_learn_as_one(trained, parts, reports, tmp_path):
    config = report_config(parts, reports, tmp_path / "two")
    in_processes(_two_learn, config)
    assert_close(weights(trained), weights(config))


@pytest.fixture(scope="module")
def learned(parts, reports, tmp_path_factory):
    """A model that was pretrained on 16 studies and learned to write their reports, on the first of three threads."""
    folder = tmp_path_factory.mktemp("learned")
    shutil.copytree(parts, folder / "parts")
    pretrain(folder / "parts", reports, steps=60)
    changes = {
        "plan.global_batch": 16,
        "fit.epochs": 180,
        "fit.validate_every": -1,
        "optim.lr": 3e-3,
        "optim.schedule": "cosine",
    }
    return learn(report_config(folder / "parts", reports, folder / "run", changes))


@pytest.mark.slow
def test_sixteen_studies_are_written_word_for_word_and_those_of_unseen_subjects_too(learned, reports, tmp_path):
    for split in ("validate", "test"):
        out = tmp_path / split
        PartialState._reset_state()
        generate(GenerateConfig(model=learned, shards=str(reports), out=out, split=split, search=BeamConfig(beams=3)))
        rows = pd.read_parquet(out / "generated.parquet")
        assert len(rows) == len(CASES)
        assert (rows["text"] == rows["reference"]).all()


@pytest.mark.slow
def test_sixteen_studies_of_training_are_written_word_for_word(learned, reports):
    writer = load_writer(learned)
    targets = read_targets(reports, read_table(reports, "train"), writer.target)
    batch = _batch(writer, reports, targets, begun=True)
    texts, _ = writer.write(batch, BeamConfig(beams=3).options(40))
    assert texts == [targets.text[key] for key in batch.keys]


@pytest.mark.slow
def test_another_image_or_another_context_makes_held_out_reports_less_likely(learned, reports):
    writer = load_writer(learned)
    targets = read_targets(reports, read_table(reports, "test"), writer.target)
    batch = _batch(writer, reports, targets)
    order = torch.roll(torch.arange(len(batch)), 5)
    other_image = replace(batch, pixels=batch.pixels[order])
    other_context = replace(
        batch,
        context_input_ids=batch.context_input_ids[order],
        context_mask=batch.context_mask[order],
        has_context=batch.has_context[order],
    )
    whole = _loss(writer, batch)
    assert _loss(writer, other_image) > whole + 0.3
    assert _loss(writer, other_context) > whole + 0.3


def _batch(writer, reports, targets, begun=False):
    data = DatasetConfig(view=writer.view).still()
    dataset = ShardDataset(reports, targets.table, writer.model.patch_grid, data)
    examples = [dataset[PlanItem(row, True, False, 0)] for row in range(len(targets.table))]
    reading = writer.reading(targets)
    return reading.begun(examples) if begun else reading(examples)


@torch.no_grad()
def _loss(writer, batch):
    output = writer.model(**batch.model_inputs(writer.model.batch_fields))
    loss = token_nll_sum(output.logits, batch.target_labels)
    return float(loss.total / loss.count)


# --- what is written


def test_every_study_is_written_once_in_order_beside_its_reference(trained, reports, tmp_path):
    assert written(trained, reports, tmp_path / "out", batch=5, search=GREEDY).studies == 16
    rows = pd.read_parquet(tmp_path / "out" / "generated.parquet")
    assert list(rows.columns) == ["key", "study_id", "image_id", "subject_id", "reference", "text"]
    assert rows["key"].is_monotonic_increasing
    assert sorted(rows["study_id"]) == sorted(f"study test{number:02d}" for number in range(16))
    assert rows["reference"].str.contains("Clear lungs. No rib is broken.").sum() == 1
    lines = [json.loads(line) for line in (tmp_path / "out" / "generated.jsonl").read_text().splitlines()]
    assert lines == rows.to_dict("records")
    assert not list((tmp_path / "out").glob("*unfinished*"))


def test_references_may_be_cut_as_published_and_studies_without_one_left_out(trained, reports, tmp_path):
    found = replace(load_writer(trained.out / "model").target, max_tokens=2)
    settings = json.loads((trained.out / "model" / "run.json").read_text())
    shutil.copytree(trained.out / "model", tmp_path / "model")
    settings["target"] |= {"max_tokens": found.max_tokens, "sections": ["impression"]}
    (tmp_path / "model" / "run.json").write_text(json.dumps(settings))
    cut = {"model": tmp_path / "model", "search": GREEDY, "limit": 1}
    PartialState._reset_state()
    with pytest.raises(ValueError, match="none of the 16 samples of split test has a text in impression"):
        generate(GenerateConfig(shards=str(reports), out=tmp_path / "a", referenced=True, **cut))
    settings["target"]["sections"] = ["findings"]
    (tmp_path / "model" / "run.json").write_text(json.dumps(settings))
    generate(GenerateConfig(shards=str(reports), out=tmp_path / "b", cut_references=True, **cut))
    short = pd.read_parquet(tmp_path / "b" / "generated.parquet")["reference"].item()
    whole = read_targets(reports, read_table(reports, "test"), TargetConfig()).text.values()
    assert any(one.startswith(short) and 0 < len(short) < len(one) for one in whole)


def test_a_text_of_another_part_of_its_table_is_no_reference_and_that_is_told(trained, reports, tmp_path):
    texts = pd.DataFrame({"study_id": [f"study test{number:02d}" for number in range(16)], "text": "Clear lungs."})
    texts.assign(split=["train", "validate", *["test_reviewed"] * 14]).to_parquet(tmp_path / "texts.parquet")
    settings = json.loads((trained.out / "model" / "run.json").read_text())
    settings["target"]["table"] = "its sha256"
    shutil.copytree(trained.out / "model", tmp_path / "model")
    (tmp_path / "model" / "run.json").write_text(json.dumps(settings))
    PartialState._reset_state()
    how = {"table": str(tmp_path / "texts.parquet"), "search": GREEDY, "attention": False}
    generate(GenerateConfig(model=tmp_path / "model", shards=str(reports), out=tmp_path / "out", **how))
    rows = pd.read_parquet(tmp_path / "out" / "generated.parquet").set_index("study_id")["reference"]
    assert sorted(rows[rows == ""].index) == ["study test00", "study test01"]
    told = json.loads((tmp_path / "out" / "generate.json").read_text())
    assert told["with a reference"] == 14
    assert told["left out"] == ["2 studies of split test are in another part of target.table: their texts are left out"]


def test_attention_is_kept_of_every_sentence_as_mass_on_the_picture(trained, reports, tmp_path, monkeypatch):
    monkeypatch.setattr(PlainScript, "read", lambda self, tokens: ["Clear lungs. No rib is broken."] * len(tokens))
    written(trained, reports, tmp_path / "out", search=GREEDY)
    with np.load(tmp_path / "out" / "attention.npz", allow_pickle=False) as stored:
        assert stored["sentence"].tolist() == ["Clear lungs.", "No rib is broken."] * 16
        assert len(set(stored["key"].tolist())) == 16
        np.testing.assert_allclose(stored["mass"].sum(axis=(1, 2)), 1, atol=1e-3)


def test_the_pretrained_model_says_where_sentences_look_if_it_is_given(trained, parts, reports, tmp_path, monkeypatch):
    monkeypatch.setattr(PlainScript, "read", lambda self, tokens: ["Nodules. Stable."] * len(tokens))
    looked = {}
    for name, looker in {"writer": None, "pretrained": parts / "model"}.items():
        written(trained, reports, tmp_path / name, search=GREEDY, limit=3, looker=looker)
        with np.load(tmp_path / name / "attention.npz", allow_pickle=False) as stored:
            looked[name] = stored["mass"]
    assert np.abs(looked["writer"] - looked["pretrained"]).max() > 1e-5
    encoder = load_encoder(parts / "model")
    folder = ShardFolder(reports)
    keys = sorted(folder.index[folder.index["split"] == "test"]["key"])[:3]
    expected = encoder.attention(ShardImages(folder, keys, encoder.reader), [["Nodules.", "Stable."]] * 3)
    shape = (6, *encoder.reader.grid)
    view = View(canvas_px=PX, crop=(0, 0, PX, PX), resized=(PX, PX))
    own = on_picture(np.concatenate(expected).reshape(shape), view, looked["pretrained"].shape[1:])
    np.testing.assert_allclose(looked["pretrained"], own, atol=1e-5)


def test_a_model_of_another_view_does_not_say_where_sentences_look(trained, parts, reports, tmp_path):
    shutil.copytree(parts / "model", tmp_path / "model")
    stated = json.loads((tmp_path / "model" / "run.json").read_text())
    stated["data"]["view"]["rule"] = "center_crop"
    (tmp_path / "model" / "run.json").write_text(json.dumps(stated))
    with pytest.raises(
        ValueError, match=r"looker sees images of 64 px \(center_crop\), the writer of 64 \(letterbox\)"
    ):
        written(trained, reports, tmp_path / "out", search=GREEDY, looker=tmp_path / "model")


def test_mass_stays_where_it_was_when_a_canvas_becomes_a_picture():
    view = View(canvas_px=8, crop=(0, 0, 4, 8), resized=(4, 8), left=2)  # a narrow picture between two bars
    maps = np.zeros((2, 4, 4))
    maps[0, 0, 1] = 1.0  # the upper left of what shows picture
    maps[1, 3, 3] = 1.0  # a bar
    found = on_picture(maps, view, (4, 2))
    assert found[0].tolist() == [[1, 0], [0, 0], [0, 0], [0, 0]]
    assert not found[1].any()
    half = View(canvas_px=8, crop=(0, 0, 6, 8), resized=(6, 8), left=1)  # the outer patches are half picture
    maps = np.zeros((1, 1, 4))
    maps[0, 0] = [0.4, 0.3, 0.2, 0.1]
    np.testing.assert_allclose(on_picture(maps, half, (1, 6))[0, 0], [0.4, 0.15, 0.15, 0.1, 0.1, 0.1])


class StopError(Exception):
    pass


def test_a_killed_call_goes_on_and_ends_as_an_unbroken_one(trained, reports, tmp_path, monkeypatch):
    written(trained, reports, tmp_path / "whole", batch=4, search=GREEDY)
    write, calls = Writer.write, []

    def failing(self, batch, options):
        calls.append(len(batch))
        if len(calls) == 3:
            raise StopError
        return write(self, batch, options)

    monkeypatch.setattr(Writer, "write", failing)
    with pytest.raises(StopError):
        written(trained, reports, tmp_path / "broken", batch=4, search=GREEDY)
    assert not (tmp_path / "broken" / "generated.parquet").exists()
    assert written(trained, reports, tmp_path / "broken", batch=4, search=GREEDY).new == 8
    assert written(trained, reports, tmp_path / "broken", batch=4, search=GREEDY).new == 0
    assert len(calls) == 3 + 2
    for name in ("generated.parquet", "generated.jsonl"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_picture_that_cannot_be_read_has_an_empty_text_if_that_is_asked_for(trained, reports, tmp_path, capsys):
    shutil.copytree(reports, tmp_path / "shards")
    folder = ShardFolder(tmp_path / "shards")
    row = folder.index[folder.index["split"] == "test"].iloc[3]
    path = tmp_path / "shards" / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["image_offset"] : row["image_offset"] + row["image_length"]] = bytes(row["image_length"])
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptSampleError, match=f"sample {row['key']} of .* cannot be read"):
        written(trained, tmp_path / "shards", tmp_path / "a", search=GREEDY)
    capsys.readouterr()
    written(trained, tmp_path / "shards", tmp_path / "b", search=GREEDY, skip_corrupt=True)
    assert f"sample {row['key']}" in capsys.readouterr().err
    rows = pd.read_parquet(tmp_path / "b" / "generated.parquet").set_index("key")
    assert len(rows) == 16
    assert rows.loc[row["key"], "text"] == ""
    assert rows.loc[row["key"], "reference"] != ""


def test_a_study_whose_record_cannot_be_read_is_left_out_and_told_if_that_is_asked_for(
    trained, reports, tmp_path, capsys
):
    shutil.copytree(reports, tmp_path / "shards")
    table = read_table(tmp_path / "shards", "test")
    with (tmp_path / "shards" / table.shard_names[table.shard[3]]).open("r+b") as file:
        file.seek(int(table.start[3, JSON]))
        file.write(b"\0" * int(table.length[3, JSON]))
    damaged = f"sample {table.name(3)} of {table.shard_names[0]} cannot be read"
    with pytest.raises(CorruptSampleError, match=f"^{damaged}.* or skip such samples \\(skip_corrupt\\)"):
        written(trained, tmp_path / "shards", tmp_path / "out", search=GREEDY)
    capsys.readouterr()
    assert written(trained, tmp_path / "shards", tmp_path / "out", search=GREEDY, skip_corrupt=True).studies == 15
    assert capsys.readouterr().err.count(f"skipped: {damaged}") == 1
    told = json.loads((tmp_path / "out" / "generate.json").read_text())
    assert told["left out"][-1] == "1 of 16 samples of split test left out: they cannot be read"


def test_other_settings_do_not_go_on(trained, reports, tmp_path):
    written(trained, reports, tmp_path / "out", limit=2, search=GREEDY)
    with pytest.raises(ValueError, match=r"out holds reports of another search; give another out"):
        written(trained, reports, tmp_path / "out", limit=2, search=BeamConfig(beams=2))


def _two_write(model, shards, out):
    PartialState._reset_state()
    generate(GenerateConfig(model=model, shards=str(shards), out=out, batch=3, search=GREEDY))


@pytest.mark.slow
def test_two_processes_write_every_study_once_and_what_one_writes(trained, reports, tmp_path):
    written(trained, reports, tmp_path / "one", batch=3, search=GREEDY)
    in_processes(_two_write, trained.out / "model", reports, tmp_path / "two")
    for name in ("generated.parquet", "generated.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_a_model_that_does_not_write_is_refused(parts, reports, tmp_path):
    PartialState._reset_state()
    with pytest.raises(ValueError, match="says method 'cogaze', must be one of report"):
        generate(GenerateConfig(model=parts / "model", shards=str(reports), out=tmp_path / "out"))


# --- what is to be written


def test_texts_of_a_table_are_learned_in_place_of_the_reports(reports, tmp_path):
    table = tmp_path / "texts.parquet"
    pd.DataFrame({"study_id": ["study train03", "elsewhere"], "text": ["Lungs:\n- Clear.", "x"]}).to_parquet(table)
    found = read_targets(reports, read_table(reports, "train"), TargetConfig(table=str(table)))
    assert list(found.text.values()) == ["Lungs:\n- Clear."]
    with pytest.raises(ValueError, match=r"none of the 16 samples of split test has a text in target\.table"):
        read_targets(reports, read_table(reports, "test"), TargetConfig(table=str(table)))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"study": ["a"], "text": ["b"]}, "lacks the columns study_id; it has study, text"),
        ({"study_id": ["a", "a"], "text": ["b", "c"]}, "1 texts more than studies"),
    ],
)
def test_a_table_that_says_too_little_or_too_much_is_refused(reports, tmp_path, columns, said):
    pd.DataFrame(columns).to_parquet(tmp_path / "texts.parquet")
    with pytest.raises(ValueError, match=said):
        read_targets(reports, read_table(reports, "train"), TargetConfig(table=str(tmp_path / "texts.parquet")))


def test_a_study_is_one_sample_the_frontal_one_where_a_report_is_known(shards):
    table = read_table(shards, "train")
    found = read_targets(shards, table, TargetConfig(sections=("findings", "impression")))
    everything = read_targets(shards, table, TargetConfig(sections=("findings", "impression"), images="all"))
    assert len(set(found.table.study_id.tolist())) == len(found.table) < len(everything.table)
    assert set(found.table.study_id.tolist()) == set(everything.table.study_id.tolist())
    for study, view in zip(found.table.study_id, found.table.view, strict=True):
        assert view == everything.table.view[everything.table.study_id == study].min()
    assert all(text and text == " ".join(text.split()) for text in everything.text.values())


def test_a_text_comes_back_from_its_tokens_and_a_long_one_is_cut_without_an_end(parts):
    tokenizer = AutoTokenizer.from_pretrained(parts / "model")
    script = PlainScript(tokenizer, max_tokens=40)
    texts = ["Clear lungs. Stable.", "", "Nodules.\n- 4-mm"]
    lines = script.taught(["a", "b", "c"], texts)
    assert script.read(lines.labels.where(lines.labels != IGNORED, script.end)) == texts
    assert lines.input_ids[:, 0].tolist() == [script.begin, script.pad, script.begin]
    assert (lines.input_ids[0, 1:][lines.mask[0, 1:]] == lines.labels[0][lines.mask[0]][:-1]).all()
    short = PlainScript(tokenizer, max_tokens=2).taught(["a"], ["Clear lungs. Stable."])
    assert short.labels.shape == (1, 2)
    assert script.end not in short.labels
