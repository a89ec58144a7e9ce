"""CheXbert from a tiny checkpoint of the published form: BERT written out once more, codes, what may be missing."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm, linear, softmax
from transformers import BertConfig

from cogaze.evaluate.reports.chexbert import (
    HEADS,
    CheXbert,
    CheXbertF1,
    codes_of,
    config_of,
    load_chexbert,
    load_tokenizer,
)
from cogaze.evaluate.reports.scorers import Reports
from cogaze.evaluate.results import NotRunError
from cogaze.evaluate.scores import Intervals
from gazeprep.schema import CHEXPERT_LABELS, LABEL_ABSENT

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "edema", "large", "heart", "effusion", "."]
WIDTH, HEADS_OF_ATTENTION = 128, 2


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint with the names of the published one, which was trained by DataParallel with older transformers."""
    torch.manual_seed(3)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_attention_heads": HEADS_OF_ATTENTION}
    model = CheXbert(BertConfig(vocab_size=len(WORDS), num_hidden_layers=2, max_position_embeddings=512, **sizes))
    for value in model.parameters():
        nn.init.normal_(value, std=0.3)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    state["module.bert.embeddings.position_ids"] = torch.arange(512)[None]
    file = tmp_path_factory.mktemp("chexbert") / "chexbert.pth"
    torch.save({"epoch": 1, "model_state_dict": state, "optimizer_state_dict": {"state": {}}}, file)
    return file


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A folder with the files that bert-base-uncased had from the beginning."""
    folder = tmp_path_factory.mktemp("uncased")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    own = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(own), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    return folder


def logits_by_hand(state, ids):
    """BERT of one text without padding, by its formulas, and the heads on its first token."""
    of = {name.removeprefix("module."): value for name, value in state.items()}

    def affine(name, x):
        return linear(x, of[f"{name}.weight"], of[f"{name}.bias"])

    def norm(name, x):
        return layer_norm(x, (WIDTH,), of[f"{name}.weight"], of[f"{name}.bias"], 1e-12)

    kinds = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    places = (torch.tensor(ids), torch.arange(len(ids)), torch.zeros(len(ids), dtype=torch.long))
    x = sum(of[f"bert.embeddings.{kind}.weight"][place] for kind, place in zip(kinds, places, strict=True))
    x = norm("bert.embeddings.LayerNorm", x)
    for number in range(2):
        layer = f"bert.encoder.layer.{number}"
        query, key, value = (
            affine(f"{layer}.attention.self.{part}", x).view(len(ids), HEADS_OF_ATTENTION, -1).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        seen = softmax(query @ key.transpose(1, 2) / math.sqrt(WIDTH / HEADS_OF_ATTENTION), dim=-1) @ value
        mixed = affine(f"{layer}.attention.output.dense", seen.transpose(0, 1).reshape(len(ids), WIDTH))
        x = norm(f"{layer}.attention.output.LayerNorm", x + mixed)
        inner = affine(f"{layer}.output.dense", gelu(affine(f"{layer}.intermediate.dense", x)))
        x = norm(f"{layer}.output.LayerNorm", x + inner)
    return [affine(f"linear_heads.{head}", x[0]) for head in range(len(HEADS))]


def test_logits_are_those_of_the_formulas_written_out(weights):
    state = torch.load(weights, weights_only=True)["model_state_dict"]
    texts = [[2, 5, 6, 3], [2, 7, 8, 9, 10, 6, 3]]
    ids, mask = torch.zeros(2, 7, dtype=torch.long), torch.zeros(2, 7, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
    with torch.no_grad():
        found = load_chexbert(weights)(ids, mask)
        for row, text in enumerate(texts):
            for head, expected in enumerate(logits_by_hand(state, text)):
                torch.testing.assert_close(found[head][row], expected, atol=2e-5, rtol=1e-4)
    assert [one.shape[1] for one in found] == [4] * 13 + [2]


def test_sizes_come_from_the_weights(weights):
    state = torch.load(weights, weights_only=True)["model_state_dict"]
    config = config_of({name.removeprefix("module."): value for name, value in state.items()})
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, WIDTH, 2)
    assert (config.intermediate_size, config.vocab_size, config.max_position_embeddings) == (48, len(WORDS), 512)


@pytest.mark.parametrize(("chosen", "code"), [(0, LABEL_ABSENT), (1, 1), (2, 0), (3, -1)])
def test_classes_become_the_codes_of_the_shards(weights, chosen, code):
    model = load_chexbert(weights)
    for head in model.linear_heads:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        with torch.no_grad():
            head.bias[min(chosen, len(head.bias) - 1)] = 1
    (row,) = model.codes(torch.tensor([[2, 3]]), torch.ones(1, 2, dtype=torch.long)).tolist()
    said = dict(zip(CHEXPERT_LABELS, row, strict=True))
    assert said.pop("No Finding") == (LABEL_ABSENT if chosen == 0 else 1)
    assert set(said.values()) == {code}


def test_each_head_keeps_its_label(weights):
    model = load_chexbert(weights)
    for name, head in zip(HEADS, model.linear_heads, strict=True):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        with torch.no_grad():
            head.bias[1 if name == "Edema" else 0] = 1
    (row,) = model.codes(torch.tensor([[2, 3]]), torch.ones(1, 2, dtype=torch.long)).tolist()
    assert [label for label, code in zip(CHEXPERT_LABELS, row, strict=True) if code == 1] == ["Edema"]


def test_batches_and_order_change_nothing(weights, tokenizer_folder):
    model, tokenizer = load_chexbert(weights), load_tokenizer(str(tokenizer_folder))
    texts = ["No edema.", "Large\n heart .", "", "effusion " * 700, "Edema. No effusion. Large heart."]
    together = codes_of(texts, model, tokenizer, "cpu", 5)
    alone = np.concatenate([codes_of([text], model, tokenizer, "cpu", 1) for text in texts])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together, codes_of(texts[::-1], model, tokenizer, "cpu", 2)[::-1])
    assert tokenizer("NO edema")["input_ids"] == [2, 5, 6, 3]


def reports():
    texts = ("No edema.", "Large heart.", "Effusion.")
    return Reports(("a", "b", "c"), texts, texts, np.array(["a", "b", "c"]))


def test_scores_are_called_chexberts(weights, tokenizer_folder):
    scored = CheXbertF1(weights, str(tokenizer_folder), batch=2, device="cpu").score(reports(), Intervals(0))
    assert list(scored.columns) == ["label agreement (CheXbert)"]
    assert scored.notes["labels"] == "CheXbert"
    assert {one.value for one in scored.figures if "micro" in one.name} <= {0.0, 1.0}


def test_without_weights_it_is_not_run_and_says_how(tmp_path, weights):
    with pytest.raises(NotRunError, match=r"not given; get chexbert\.pth by the link .* --chexbert\.weights FILE"):
        CheXbertF1().score(reports(), Intervals(0))
    with pytest.raises(NotRunError, match=r"gone\.pth are not there; get chexbert\.pth"):
        CheXbertF1(tmp_path / "gone.pth").score(reports(), Intervals(0))
    with pytest.raises(NotRunError, match=r"tokenizer 'none' cannot be loaded \(\w+\); pass --chexbert\.tokenizer"):
        CheXbertF1(weights, str(tmp_path / "none")).score(reports(), Intervals(0))


@pytest.mark.parametrize("wrong", ["empty", "text", "pickle", "other", "lacking"])
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path, weights, wrong):
    file = tmp_path / "x.pth"
    state = torch.load(weights, weights_only=True)["model_state_dict"]
    if wrong == "pickle":  # would run code if it were unpickled without care
        file.write_bytes(pickle.dumps(load_chexbert, protocol=2))
    elif wrong == "other":
        torch.save({"state_dict": state}, file)
    elif wrong == "lacking":
        torch.save({"model_state_dict": dict(list(state.items())[1:])}, file)
    else:
        file.write_bytes(b"" if wrong == "empty" else b"not weights")
    with pytest.raises(ValueError, match=r"x\.pth"):
        load_chexbert(file)


def test_options_are_checked():
    with pytest.raises(ValueError, match="batch is 0"):
        CheXbertF1(batch=0)
    with pytest.raises(ValueError, match="no label rule"):
        CheXbertF1(rule="x")
