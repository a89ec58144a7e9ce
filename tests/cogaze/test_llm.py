"""A language model that writes: its prompt, where latents stand in it, what is trained, saved and refused."""

import json
import shutil
import sys
from dataclasses import replace
from unittest.mock import Mock

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import PartialState
from processes import in_processes
from runs import assert_close, assert_same, weights
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from writing import ASKED, CASES, SEEN, learn, pretrain, report_config, write_parts

from cogaze import hints as hints_module
from cogaze.data import targets as targets_module
from cogaze.data.chat import ChatScript, Hint, PromptConfig
from cogaze.data.dataset import DatasetConfig, ShardDataset, read_table
from cogaze.data.plan import PlanItem
from cogaze.data.targets import read_targets
from cogaze.fit import fit
from cogaze.frozen import cache_features
from cogaze.generate import BeamConfig, GenerateConfig, generate
from cogaze.losses.words import IGNORED, token_nll_sum
from cogaze.models.llm import (
    LanguageModel,
    LoraConfig,
    PromptedDecoder,
    language_model_sha256,
    load_language_model,
    with_lora,
)
from cogaze.models.report import ReportModel
from cogaze.report_config import DecoderConfig
from cogaze.writer import load_writer

TEMPLATE = (
    "{{ bos_token }}{% for one in messages %}<|{{ one['role'] }}|>{{ one['content'] | trim }}<|over|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
PROMPT = PromptConfig(system="Write.", user="See {latents}. Like {similar}. Maybe {diseases}.", similar_tokens=6)
ROLES = ["<|begin|>", "<|end|>", "<|over|>", "<|system|>", "<|user|>", "<|assistant|>"]


LINEAR = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "gpt2": ("c_attn", "c_fc", "c_proj"),
}


def write_language_model(folder, kind="llama", seed=0, template=TEMPLATE, spread=0.02):
    """An untrained language model with a tokenizer of bytes that knows the roles of a chat."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [*SEEN, *ASKED, PROMPT.system, PROMPT.user]
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=ROLES, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|begin|>", eos_token="<|end|>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "initializer_range": spread}
    if kind == "gpt2":
        sizes |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=320, **sizes))
    else:
        heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        widths = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 320}
        model = LlamaForCausalLM(LlamaConfig(**widths, **heads, **sizes, tie_word_embeddings=True))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("language models") / "llama")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("language models") / "gpt2", "gpt2")


def tokenizer_of(folder, template=TEMPLATE):
    found = AutoTokenizer.from_pretrained(folder)
    found.chat_template = template
    return found


HINTS = {"a": Hint("Clear lungs. Stable.", ("Edema", "Fracture")), "b": Hint(), "c": Hint("Nodules.", ())}


@pytest.fixture
def script(lm):
    return ChatScript(tokenizer_of(lm), PROMPT, latents=3, max_tokens=20, hints=HINTS)


# --- the prompt


def shown(script, lines, row):
    """What a row is shown, with * for each latent."""
    pieces = [
        "*" if latent else script.tokenizer.decode([number])
        for number, used, latent in zip(lines.input_ids[row], lines.mask[row], lines.latents[row], strict=True)
        if used
    ]
    return "".join(pieces)


def test_the_prompt_is_worded_by_the_template_with_a_similar_case_and_diseases(script):
    lines = script.begun(["a", "b", "c"])
    told = "<|begin|><|system|>Write.<|over|><|user|>See ***. Like {}. Maybe {}.<|over|><|assistant|>"
    similar = script.tokenizer("Clear lungs. Stable.", add_special_tokens=False)["input_ids"]
    assert len(similar) > 6
    assert shown(script, lines, 0) == told.format(script.tokenizer.decode(similar[-6:]), "Edema, Fracture")
    assert shown(script, lines, 1) == told.format("none", "none")
    assert shown(script, lines, 2) == told.format("Nodules.", "none")
    assert lines.mask[:, -1].all()  # padded on the left
    assert (lines.latents.sum(dim=1) == 3).all()
    assert not (lines.input_ids < 0).any()


def test_the_report_alone_is_learned_with_the_token_that_ends_a_turn(script):
    lines = script.taught(["a", "b"], ["Kerley lines. Stable.", ""])
    said = lines.labels[0] != IGNORED
    assert script.tokenizer.decode(lines.labels[0][said]) == "Kerley lines. Stable.<|over|>"
    first = int(said.nonzero()[0])
    assert shown(script, lines, 0)[-len("Kerley lines. Stable.") :] == "Kerley lines. Stable."
    before = script.tokenizer.decode(lines.input_ids[0][: first + 1])
    assert before.endswith("<|assistant|>")
    assert (lines.labels[1] == IGNORED).all()
    assert not lines.mask[1].any()
    written = torch.nn.functional.pad(lines.labels[0][said], (0, 4), value=script.pad)
    assert script.read(written[None]) == ["Kerley lines. Stable."]


def test_a_long_report_is_cut_without_an_end(script):
    lines = script.taught(["b"], ["Kerley lines. " * 20])
    said = lines.labels[0][lines.labels[0] != IGNORED]
    assert len(said) == 20
    assert script.chat.end not in said


def test_no_word_of_a_report_is_a_special_token(lm):
    script = ChatScript(tokenizer_of(lm), PROMPT, 3, 40, {"a": Hint("<|over|>", ())})
    lines = script.taught(["a"], ["No <|over|> here."])
    said = lines.labels[0][lines.labels[0] != IGNORED]
    assert (said == script.chat.end).sum() == 1
    assert (lines.input_ids[0][~lines.latents[0]] == script.chat.end).sum() == 2  # system's and user's
    assert script.read(said[None]) == ["No <|over|> here."]


def test_a_template_without_system_is_told_all_as_the_user(lm):
    script = ChatScript(tokenizer_of(lm, NO_SYSTEM), PROMPT, 3, 20, HINTS)
    told = "<|begin|><|user|>Write.\n\nSee ***. Like Nodules.. Maybe none.<|over|><|assistant|>"
    assert shown(script, script.begun(["c"]), 0) == told


def test_a_tokenizer_without_template_is_told_plainly(lm):
    script = ChatScript(tokenizer_of(lm, None), PROMPT, 3, 20, HINTS)
    assert shown(script, script.begun(["c"]), 0) == "<|begin|>Write.\n\nSee ***. Like Nodules.. Maybe none.\n\n"
    assert script.tokenizer.convert_ids_to_tokens(script.chat.end) == "<|end|>"


def test_a_template_that_tells_the_day_tells_always_the_same(lm):
    day = "{% if date_string is not defined %}{% set date_string = strftime_now('%H:%M:%S') %}{% endif %}"
    texts = ChatScript(tokenizer_of(lm, day + "{{ date_string }}" + TEMPLATE), PROMPT, 3, 20).chat.text
    assert texts.startswith("01 Jan 2026")


def test_what_cannot_be_told_is_refused(lm):
    with pytest.raises(ValueError, match=r"does not keep \{latents\}"):
        ChatScript(tokenizer_of(lm, "{{ messages[0]['role'] }}"), PROMPT, 3, 20)
    for user in ("no image", "{latents} and {latents}"):
        with pytest.raises(ValueError, match=r"must hold \{latents\} once"):
            PromptConfig(user=user)
    with pytest.raises(ValueError, match="similar_by is 'text'"):
        PromptConfig(similar_by="text")
    with pytest.raises(ValueError, match="between 0 and 1"):
        PromptConfig(disease_threshold=1.0)


def test_a_script_comes_back_from_its_folder(script, tmp_path):
    script.save_pretrained(tmp_path)
    read = ChatScript.from_pretrained(tmp_path, 3, 20).hinted(HINTS)
    for name in ("input_ids", "mask", "latents", "labels"):
        ours, theirs = (getattr(one.taught(["a"], ["Stable."]), name) for one in (script, read))
        torch.testing.assert_close(ours, theirs)
    assert read.options() == script.options()
    with pytest.raises(ValueError, match="no readable decoder_tokenizer"):
        ChatScript.from_pretrained(tmp_path / "elsewhere", 3, 20)


# --- the decoder


def decoder_of(folder, targets=("q_proj", "v_proj"), latent_width=5):
    torch.manual_seed(1)
    base = load_language_model(LanguageModel(str(folder), language_model_sha256(str(folder))))
    decoder = PromptedDecoder(base, latent_width, LoraConfig(targets=targets))
    for name, one in decoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(one)  # which begins at 0, and then says nothing
    return decoder.eval()


@pytest.fixture(scope="module")
def decoder(lm):
    return decoder_of(lm)


LATENTS = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(0))


def test_latents_stand_in_order_where_the_prompt_has_them(decoder, script):
    lines = script.begun(["a", "b", "c"])
    found = decoder.embedded(LATENTS, lines.input_ids, lines.latents)
    words = decoder.model.get_input_embeddings()
    for row in range(3):
        start = int(lines.latents[row].nonzero()[0])
        expected = torch.cat(
            (
                words(lines.input_ids[row, :start]),
                decoder.adapter(LATENTS[row]),
                words(lines.input_ids[row, start + 3 :]),
            )
        )
        torch.testing.assert_close(found[row], expected)


def test_what_is_written_under_padding_is_what_is_written_alone(decoder, script):
    greedy = {"max_new_tokens": 8, "num_beams": 2, "do_sample": False, **script.options(), "eos_token_id": 399}
    keys = ["a", "b", "c"]
    lines = script.begun(keys)
    assert not lines.mask[:, 0].all()
    together = decoder.write(LATENTS, lines.input_ids, lines.mask, lines.latents, **greedy)
    for row, key in enumerate(keys):
        one = script.begun([key])
        alone = decoder.write(LATENTS[row : row + 1], one.input_ids, one.mask, one.latents, **greedy)
        assert together[row].tolist() == alone[0].tolist()
    assert len({tuple(row) for row in together.tolist()}) > 1


@pytest.mark.parametrize("kind", ["lm", "gpt2"])
def test_probabilities_do_not_depend_on_the_side_of_padding(kind, script, request):
    folder = request.getfixturevalue(kind)
    decoder = decoder_of(folder, ("c_attn",) if kind == "gpt2" else ("q_proj", "v_proj"))
    left = script.begun(["a", "b", "c"])
    logits = decoder(LATENTS, left.input_ids, left.mask, left.latents)
    for row, key in enumerate(["a", "b", "c"]):
        one = script.begun([key])
        alone = decoder(LATENTS[row : row + 1], one.input_ids, one.mask, one.latents)[0]
        torch.testing.assert_close(logits[row, left.mask[row]], alone, rtol=1e-4, atol=1e-5)


def test_a_row_without_report_gets_no_number_that_is_not_finite(decoder, script):
    lines = script.taught(["a", "b"], ["Stable.", ""])
    mask = lines.mask.clone()
    mask[1, 0] = True  # as collation has it
    logits = decoder(LATENTS[:2], lines.input_ids, mask, lines.latents)
    assert logits.isfinite().all()


def test_its_state_is_what_is_trained(decoder, lm):
    trained = {name for name, one in decoder.named_parameters() if one.requires_grad}
    assert set(decoder.state_dict()) == trained
    assert {name.split(".")[0] for name in trained} == {"adapter", "model"}
    assert all("lora_" in name for name in trained if name.startswith("model"))
    assert sum("lora_A" in name for name in trained) == 4  # two layers, queries and values
    alone = PromptedDecoder(load_language_model(LanguageModel(str(lm))), 5, LoraConfig(rank=0))
    assert set(alone.state_dict()) == {"adapter.weight", "adapter.bias"}


# --- what is refused


def test_lora_without_peft_or_without_such_layers_is_refused(lm, gpt2, monkeypatch):
    with pytest.raises(ValueError, match="gpt2, has the linear layers c_attn, c_fc, c_proj, lm_head"):
        with_lora(load_language_model(LanguageModel(str(gpt2))), LoraConfig())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'gazeprep-cogaze\[llm\]'"):
        with_lora(load_language_model(LanguageModel(str(lm))), LoraConfig())


def test_four_bits_are_for_gpus_that_have_what_it_takes(lm, monkeypatch):
    stated = LanguageModel(str(lm), four_bit=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a CUDA device"):
        load_language_model(stated)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        load_language_model(stated)


def test_what_is_no_language_model_is_refused(towers, tmp_path):
    with pytest.raises(ValueError, match="no language model at nobody/nothing"):
        language_model_sha256("nobody/nothing")
    with pytest.raises(ValueError, match="no causal language model"):
        load_language_model(LanguageModel(str(towers / "vision")))
    with pytest.raises(ValueError, match=r"no \*\.safetensors"):
        language_model_sha256(str(tmp_path))
    with pytest.raises(ValueError, match="must be one of auto, bf16, float32"):
        LanguageModel("a", dtype="fp8")
    with pytest.raises(ValueError, match="rank must be at least 0"):
        LoraConfig(rank=-1)


def test_a_language_model_can_be_held_in_bf16(lm, script):
    decoder = PromptedDecoder(load_language_model(LanguageModel(str(lm), dtype="bf16")), 5, LoraConfig())
    assert {one.dtype for one in decoder.parameters() if one.requires_grad} == {torch.float32}
    assert {one.dtype for one in decoder.parameters() if not one.requires_grad} == {torch.bfloat16}
    lines = script.taught(["a", "b", "c"], ["Stable."] * 3)
    logits = decoder(LATENTS, lines.input_ids, lines.mask, lines.latents)
    token_nll_sum(logits, lines.labels).total.backward()
    trained = {name: one for name, one in decoder.named_parameters() if one.requires_grad and "lora_A" not in name}
    assert all(one.grad.isfinite().all() and one.grad.any() for one in trained.values())
    assert decoder.write(LATENTS, lines.input_ids, lines.mask, lines.latents, max_new_tokens=2).shape == (3, 2)


# --- a run


def llm_config(parts, lm, shards, out, changes=None):
    settings = {
        "decoder": DecoderConfig(kind="llm", name=str(lm)),
        "frozen": "encoder",
        "prompt": PROMPT,
        "target.max_tokens": 20,
    }
    return report_config(parts, shards, out, {**settings, **(changes or {})})


@pytest.fixture(scope="module")
def trained(parts, lm, reports, tmp_path_factory):
    """A run of four steps."""
    config = llm_config(parts, lm, reports, tmp_path_factory.mktemp("run") / "whole")
    learn(config)
    return config


def test_a_run_trains_adapter_and_lora_alone(trained, parts, lm):
    learned = weights(trained)
    pretrained = load_file(parts / "model" / "model.safetensors")
    assert {f"encoder.{name}" for name in pretrained} == {name for name in learned if name.startswith("encoder.")}
    for name, tensor in pretrained.items():
        assert torch.equal(learned[f"encoder.{name}"], tensor), name
    own = {name for name in learned if name.startswith("decoder.")}
    assert all("lora_" in name or "adapter" in name for name in own)
    assert all(learned[name].any() for name in own if "lora_B" in name), "nothing was learned"


def test_nothing_that_is_saved_holds_the_language_model_or_a_place(trained, lm):
    base = sum(path.stat().st_size for path in lm.glob("*.safetensors"))
    for path in trained.out.rglob("*.safetensors"):
        names = load_file(path)
        assert not [name for name in names if "embed_tokens" in name or "base_layer" in name], path
    assert base > 0
    for path in [*trained.out.rglob("*.json"), *trained.out.rglob("*.md")]:
        assert str(lm.parent) not in path.read_text(), path
    stated = json.loads((trained.out / "model" / "config.json").read_text())["language_model"]
    assert (stated["name"], stated["sha256"]) == ("llama", language_model_sha256(str(lm)))


def test_a_saved_model_comes_back_on_its_language_model_alone(trained, lm, tmp_path):
    folder = trained.out / "model"
    read = ReportModel.from_pretrained(folder, language_model=str(lm))
    assert not read.training
    assert_same(read.state_dict(), weights(trained))
    untouched = load_file(lm / "model.safetensors")
    held = dict(read.decoder.model.named_parameters())
    for name, tensor in untouched.items():
        found = held.get(name, held.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(found, tensor), name
    with pytest.raises(ValueError, match="a folder llama, which is not part of it"):
        ReportModel.from_pretrained(folder)
    other = write_language_model(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="are not those of the language model"):
        ReportModel.from_pretrained(folder, language_model=str(other))
    shutil.copytree(folder, tmp_path / "less")
    less = {name: one for name, one in load_file(folder / "model.safetensors").items() if "adapter.bias" not in name}
    (tmp_path / "less" / "model.safetensors").unlink()
    save_file(less, tmp_path / "less" / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 weights are lacking or too many, such as decoder\.adapter\.bias"):
        ReportModel.from_pretrained(tmp_path / "less", language_model=str(lm))


def test_a_stopped_run_goes_on_bit_for_bit(trained, parts, lm, reports, tmp_path):
    half = llm_config(parts, lm, reports, tmp_path / "half", {"fit.max_steps": 2})
    learn(half)
    learn(replace(half, fit=trained.fit))
    assert_same(weights(trained), weights(half))


def test_a_run_that_finds_its_hints_made_learns_the_same(trained, parts, lm, reports, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    shutil.copy(trained.out / "hints.parquet", tmp_path / "run")
    monkeypatch.setattr(hints_module, "looked_at", None)
    monkeypatch.setattr(targets_module, "_record", counted := Mock(wraps=targets_module._record))
    config = llm_config(parts, lm, reports, tmp_path / "run")
    learn(config)
    assert_same(weights(trained), weights(config))
    assert counted.call_count == 16 + 16  # of train and validate, each once


@pytest.mark.slow
def test_stored_tokens_of_what_the_run_reads_find_the_same(trained, parts, lm, reports, tmp_path):
    shutil.copytree(parts, tmp_path / "still")
    stated = json.loads((parts / "model" / "run.json").read_text())
    stated["data"]["view"] |= {"shift": 0.0}
    (tmp_path / "still" / "model" / "run.json").write_text(json.dumps(stated))
    config = llm_config(tmp_path / "still", lm, reports, tmp_path / "run", {"data.features": str(tmp_path / "tokens")})
    cache_features(config)  # of train and validate, not of test
    learn(config)
    found, expected = (pq.read_table(one.out / "hints.parquet").to_pylist() for one in (config, trained))
    assert sorted(found, key=lambda row: row["key"]) == sorted(expected, key=lambda row: row["key"])


def test_another_language_model_is_not_gone_on_with(trained, parts, reports, tmp_path):
    other = write_language_model(tmp_path / "llama", seed=1)
    shutil.copytree(trained.out, tmp_path / "run")
    with pytest.raises(ValueError, match=r"written with model\.decoder_sha256"):
        learn(llm_config(parts, other, reports, tmp_path / "run", {"fit.epochs": 3}))


def test_a_run_that_cannot_be_is_refused_before_its_first_step(parts, lm, reports, tmp_path):
    with pytest.raises(ValueError, match="frozen is tower"):
        llm_config(parts, lm, reports, tmp_path / "a", {"frozen": "tower"})
    stated = json.loads((parts / "model" / "run.json").read_text())
    shutil.copytree(parts / "model", tmp_path / "writes" / "model")
    (tmp_path / "writes" / "model" / "run.json").write_text(json.dumps(stated | {"method": "report"}))
    with pytest.raises(ValueError, match="no longer predicts diseases"):
        llm_config(tmp_path / "writes", lm, reports, tmp_path / "c")
    alone = {"prompt.user": "{latents}"}
    assert llm_config(tmp_path / "writes", lm, reports, tmp_path / "c", alone).prompt.user == "{latents}"
    with pytest.raises(ValueError, match=r"up to \d+ tokens, but the language model has 320 positions"):
        learn(llm_config(parts, lm, reports, tmp_path / "b", {"prompt.similar_tokens": 250}))


def _two_learn(config):
    fit(config)


@pytest.mark.slow
def test_two_processes_learn_as_one(trained, parts, lm, reports, tmp_path):
    still = {"decoder.lora.dropout": 0.0}
    one, two = (llm_config(parts, lm, reports, tmp_path / name, still) for name in ("one", "two"))
    learn(one)
    in_processes(_two_learn, two)
    assert_close(weights(one), weights(two))
    half = llm_config(parts, lm, reports, tmp_path / "half", {**still, "fit.max_steps": 2})
    in_processes(_two_learn, half)
    in_processes(_two_learn, replace(half, fit=one.fit))
    assert_same(weights(two), weights(half))


# --- writing


def test_a_saved_model_writes_with_the_hints_of_its_run(trained, reports, lm, tmp_path, monkeypatch):
    monkeypatch.setattr(hints_module, "looked_at", None)  # the run has found those of the test split too
    PartialState._reset_state()
    how = {"shards": str(reports), "search": BeamConfig(beams=2), "language_model": str(lm), "attention": False}
    generate(GenerateConfig(model=trained.out / "model", out=tmp_path / "out", **how))
    found = pd.read_parquet(tmp_path / "out" / "generated.parquet")
    assert len(found) == 16
    assert not (tmp_path / "out" / "hints.parquet").exists()


def test_a_model_far_from_its_run_looks_again_and_writes_the_same(trained, reports, lm, tmp_path):
    shutil.copytree(trained.out / "model", tmp_path / "model")
    texts = []
    for number, model in enumerate((trained.out / "model", tmp_path / "model")):
        PartialState._reset_state()
        out = tmp_path / f"out {number}"
        how = {"shards": str(reports), "search": BeamConfig(beams=1), "limit": 4, "attention": False}
        generate(GenerateConfig(model=model, out=out, language_model=str(lm), **how))
        texts.append((out / "generated.jsonl").read_text())
    assert texts[0] == texts[1]
    assert (tmp_path / "out 1" / "hints.parquet").exists()


@pytest.fixture(scope="module")
def pretrained(reports, tmp_path_factory):
    """Parts whose encoder has seen 16 studies."""
    folder = tmp_path_factory.mktemp("pretrained")
    write_parts(folder)
    pretrain(folder, reports, steps=60)
    return folder


def learn_to_speak(folder, prompt):
    """Let a language model learn to say again the similar report that it is shown, as one of the world might."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    texts = [f"{seen} {ASKED[asked]}" for seen, asked in CASES]
    script = ChatScript(tokenizer_of(folder), prompt, 8, 40, {text: Hint(text) for text in texts})
    lines = script.taught(texts, texts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        logits = model(input_ids=lines.input_ids, attention_mask=lines.mask.long()).logits
        optimizer.zero_grad()
        token_nll_sum(logits, lines.labels).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_sixteen_studies_are_written_word_for_word(kind, pretrained, reports, tmp_path):
    prompt = replace(PROMPT, user="{latents} {similar} {diseases}", similar_tokens=40)
    folder = write_language_model(tmp_path / kind, kind, spread=0.5)
    learn_to_speak(folder, prompt)
    much = {
        "decoder.lora": LoraConfig(rank=16, alpha=16, dropout=0.0, targets=LINEAR[kind]),
        "prompt": prompt,
        "target.max_tokens": 40,
        "fit.epochs": 80,
        "fit.validate_every": -1,
        "plan.global_batch": 16,
        "optim.lr": 1e-2,
        "optim.schedule": "cosine",
    }
    config = llm_config(pretrained, folder, reports, tmp_path / "run", much)
    learn(config)
    writer = load_writer(config.out / "model", language_model=str(folder))
    targets = read_targets(reports, read_table(reports, "train"), writer.target)
    writer = writer.told(str(reports), targets.table, [config.out])
    dataset = ShardDataset(reports, targets.table, writer.model.patch_grid, DatasetConfig(view=writer.view).still())
    examples = [dataset[PlanItem(row, True, False, 0)] for row in range(len(targets.table))]
    batch = writer.reading(targets).begun(examples)
    texts, _ = writer.write(batch, BeamConfig(beams=3).options(40))
    assert len(texts) == len(CASES)
    assert texts == [targets.text[key] for key in batch.keys]
