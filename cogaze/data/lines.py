"""What a decoder is shown and is to say: reports as token numbers under teacher forcing, and how a report begins."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cogaze.data.collate import Batch, Collate, CollateConfig
from cogaze.data.dataset import Example
from cogaze.data.targets import Targets
from cogaze.losses.words import IGNORED


@dataclass(frozen=True, eq=False)
class Lines:
    """B rows of tokens (B, L): input_ids and mask, True for a token; latents, True where a latent stands for one.

    labels: what is to be said after each of them, IGNORED where nothing is taught.
    """

    input_ids: Tensor
    mask: Tensor
    latents: Tensor
    labels: Tensor


class Script(Protocol):
    """How a decoder's reports are put into tokens and back."""

    def taught(self, keys: Sequence[str], texts: Sequence[str]) -> Lines:
        """Put texts, "" for none, of samples into tokens to learn from, padded on the right."""

    def begun(self, keys: Sequence[str]) -> Lines:
        """Put how a sample's report begins into tokens, padded on the left."""

    def read(self, written: Tensor) -> list[str]:
        """Turn what a decoder wrote (B, L) into texts."""

    def options(self) -> dict[str, Any]:
        """Return the special tokens that `generate` has to know."""

    def save_pretrained(self, folder: Path) -> None:
        """Write what is needed to make it again beside a model."""


class PlainScript:
    """A beginning, the text and an end: what a decoder reads that gets the latents by cross-attention.

    The beginning and the end are the tokenizer's own, which in GPT-2 are one token, else [CLS] and [SEP].
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.begin, self.end = begin_and_end(tokenizer)

    def taught(self, keys: Sequence[str], texts: Sequence[str]) -> Lines:
        """Put texts into tokens, cut to max_tokens with the end, which a text that is cut does not have."""
        del keys
        said = [self._said(text) if text else [] for text in texts]
        return lined_up([[self.begin, *own[:-1]] if own else [] for own in said], said, self.pad)

    def begun(self, keys: Sequence[str]) -> Lines:
        """Begin each with the one token."""
        return lined_up([[self.begin] for _ in keys], [[IGNORED] for _ in keys], self.pad)

    def read(self, written: Tensor) -> list[str]:
        """Turn what was written into texts, up to the first end."""
        rows = [row[: row.index(self.end)] if self.end in row else row for row in written.tolist()]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def options(self) -> dict[str, Any]:
        """Return beginning, end and padding."""
        return {"bos_token_id": self.begin, "eos_token_id": self.end, "pad_token_id": self.pad}

    def save_pretrained(self, folder: Path) -> None:
        """Its tokenizer is the model's own, which is there already."""

    @property
    def pad(self) -> int:
        """The number of the padding token."""
        return int(self.tokenizer.pad_token_id)

    def _said(self, text: str) -> list[int]:
        # What looks like a special token in a report is text.
        said = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*said, self.end][: self.max_tokens]


def begin_and_end(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the tokens that begin and end a report; raises ValueError where the tokenizer has neither pair."""
    begin = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if begin is None or end is None:
        raise ValueError("the tokenizer has no token that begins or ends a text; add_special_tokens gives it some")
    return int(begin), int(end)


def lined_up(shown: Sequence[Sequence[int]], said: Sequence[Sequence[int]], pad: int, *, left: bool = False) -> Lines:
    """Pad rows of tokens, and of what is to be said after each of them, to one length; an empty row is one padding."""
    shape = len(shown), max(1, *(len(row) for row in shown))
    ids, labels = torch.full(shape, pad), torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, (tokens, after) in enumerate(zip(shown, said, strict=True)):
        places = slice(shape[1] - len(tokens), None) if left else slice(len(tokens))
        ids[row, places], mask[row, places] = torch.tensor(list(tokens), dtype=torch.int64), True
        labels[row, places] = torch.tensor(list(after), dtype=torch.int64)
    return Lines(ids, mask, torch.zeros_like(mask), labels)


def as_taught(script: Script, keys: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Return texts as a decoder learns them: cut, and in the words that its tokenizer gives back."""
    said = [row[row != IGNORED] for row in script.taught(keys, texts).labels]
    return [script.read(row[None])[0] if len(row) else "" for row in said]


@dataclass(frozen=True, eq=False)
class ReportBatch(Batch):
    """A batch with what a decoder is shown of its reports and is to say: target_* (B, L), as Lines has them.

    A row without a report, a filler among them, shows one padding token and says nothing.
    """

    target_input_ids: Tensor
    target_mask: Tensor
    target_latents: Tensor
    target_labels: Tensor


class ReportCollate(Collate):
    """Examples -> ReportBatch."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: CollateConfig, targets: Sequence[Targets], script: Script
    ) -> None:
        super().__init__(tokenizer, config)
        self.script = script
        self._text = {key: text for one in targets for key, text in one.text.items()}

    def __call__(self, examples: Sequence[Example]) -> ReportBatch:
        """Return the batch to learn from."""
        texts = [self._text[example.key] if example.valid else "" for example in examples]
        return self._with(examples, self.script.taught([example.key for example in examples], texts))

    def begun(self, examples: Sequence[Example]) -> ReportBatch:
        """Return the batch to write from."""
        return self._with(examples, self.script.begun([example.key for example in examples]))

    def _with(self, examples: Sequence[Example], lines: Lines) -> ReportBatch:
        batch = super().__call__(examples)
        mask = lines.mask.clone()
        mask[~mask.any(dim=1), 0] = True  # attention over nothing is NaN
        return ReportBatch(
            **{one.name: getattr(batch, one.name) for one in fields(batch)},
            target_input_ids=lines.input_ids,
            target_mask=mask,
            target_latents=lines.latents,
            target_labels=lines.labels,
        )

    def save_pretrained(self, folder: Path) -> None:
        """Write tokenizer and script."""
        super().save_pretrained(folder)
        self.script.save_pretrained(folder)
