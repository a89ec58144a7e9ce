"""Fixtures of the training half: tiny tokenizers that need no download."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forked processes share two cores

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cogaze.data.collate import add_special_tokens

REPORT_WORDS = [
    "clear lungs . no effusion .",
    "the heart is normal in size .",
    "cough and fever , rule out pneumonia .",
]


def save_tokenizer(folder: Path, kind: str) -> Path:
    """Write a tiny tokenizer folder: word pieces with BERT's own special tokens, or DistilGPT-2's kind of bytes."""
    if kind == "wordpiece":
        own = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        pieces = [*own, *sorted({word for line in REPORT_WORDS for word in line.split()}), "a", "##b"]
        made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        roles = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        made.train_from_iterator(REPORT_WORDS, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet))
        roles = {"eos_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **roles).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bare_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a word-piece and a byte-pair tokenizer without CoGaze's special tokens."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return {kind: save_tokenizer(folder / kind, kind) for kind in ("wordpiece", "bytepair")}


@pytest.fixture(params=["wordpiece", "bytepair"])
def tokenizer(request: pytest.FixtureRequest, bare_tokenizers: dict[str, Path]) -> PreTrainedTokenizerBase:
    """A tokenizer that knows the prompts' special tokens."""
    made = AutoTokenizer.from_pretrained(bare_tokenizers[request.param])
    add_special_tokens(made)
    return made
