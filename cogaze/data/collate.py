"""Examples -> one batch of tensors: prompts to tokens, sentences with their maps, labels under a policy."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from string import Formatter
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cogaze.data.dataset import CONTEXT, PRIOR, SECTIONS, Example
from gazeprep.schema import LABEL_ABSENT, Word
from gazeprep.transcripts import split_phrases

LabelPolicy = Literal["published", "mask_uncertain", "mentioned"]
SentenceRule = Literal["gaze", "all"]
LABEL_OF = {1: 1.0, 0: 0.0, -1: 1.0, LABEL_ABSENT: 0.0}
MASKED: dict[str, tuple[int, ...]] = {
    "published": (),
    "mask_uncertain": (-1,),
    "mentioned": (-1, LABEL_ABSENT),
}
SPECIAL_TOKEN = re.compile(r"\[[A-Za-z ]+\]")
# In the order in which the published vocabulary has them, after DistilGPT-2's own tokens.
PUBLISHED_TOKENS = (
    "[PAD]", "[SEP]", "[CLS]", "[INDICATION]", "[HISTORY]", "[Similar Cases]", "[FINDINGS]", "[TRANSCRIPT]",
)  # fmt: skip
PLACEHOLDERS = {"report": ("report",), "context": (*CONTEXT, PRIOR), "sentence": ("sentence",)}
ROLES = {"pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": "[CLS]"}


@dataclass(frozen=True)
class TextConfig:
    """The prompts, and how long they may become in tokens.

    report_sections: the first of these that a report has is its text. Tokens in brackets must be in the vocabulary.
    context may hold {prior}, the text of the subject's last study before, of shards that were built with sample.prior.
    """

    report: str = "[CLS] [FINDINGS] {report}"
    context: str = "[CLS] [INDICATION] {indication} [SEP] [HISTORY] {history}"
    sentence: str = "[CLS] [TRANSCRIPT] {sentence}"
    report_sections: tuple[str, ...] = ("findings", "impression", "last_paragraph")
    max_tokens: int = 300

    def __post_init__(self) -> None:
        for name, known in PLACEHOLDERS.items():
            prompt = getattr(self, name)
            try:
                prompt.format(**dict.fromkeys(known, ""))
            except (LookupError, ValueError, AttributeError):
                named = " and ".join(f"{{{one}}}" for one in known)
                raise ValueError(
                    f"collate.text.{name} is {prompt!r}, which cannot be filled in; its placeholders are {named}"
                ) from None
        unknown = sorted(set(self.report_sections) - set(SECTIONS))
        if unknown or not self.report_sections:
            raise ValueError(
                f"collate.text.report_sections is {list(self.report_sections)}, must be one or more of "
                f"{', '.join(SECTIONS)}"
            )
        if self.max_tokens < 1:
            raise ValueError(f"collate.text.max_tokens is {self.max_tokens}, must be at least 1")

    @property
    def asks_for_prior(self) -> bool:
        """Whether the context prompt holds the text of an earlier study."""
        return PRIOR in [name for _, name, _, _ in Formatter().parse(self.context)]

    def filled_context(self, sections: Mapping[str, str]) -> str:
        """Fill in the context prompt; "" where nothing of it is known.

        Raises ValueError where it asks for an earlier study and the sections, so the shards, tell of none.
        """
        if self.asks_for_prior and PRIOR not in sections:
            raise ValueError(
                f"collate.text.context asks for {{{PRIOR}}}, but the shards were built without earlier studies; build "
                f"them with --sample.prior true, or leave {{{PRIOR}}} out of the prompt"
            )
        names = (*CONTEXT, PRIOR) if self.asks_for_prior else CONTEXT
        texts = {name: sections[name].strip() for name in names}
        return self.context.format(**texts).strip() if any(texts.values()) else ""

    def special_tokens(self) -> list[str]:
        """Return the tokens in brackets that the prompts use, and the padding."""
        used = SPECIAL_TOKEN.findall(" ".join((self.report, self.context, self.sentence)))
        return list(dict.fromkeys(["[PAD]", *used]))


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str] = PUBLISHED_TOKENS) -> int:
    """Add the special tokens that a tokenizer lacks; returns how many, by which its tower must grow."""
    lacking = [token for token in tokens if token not in tokenizer.get_vocab()]
    added = tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in lacking])
    for role, token in ROLES.items():
        if getattr(tokenizer, role) is None:
            setattr(tokenizer, role, token)
    return added


def check_special_tokens(tokenizer: PreTrainedTokenizerBase, config: TextConfig) -> None:
    """Raise ValueError where a prompt's special token is not one token of the vocabulary, or padding has none."""
    vocabulary = tokenizer.get_vocab()
    lacking = [token for token in config.special_tokens() if token not in vocabulary]
    if lacking or tokenizer.pad_token is None:
        raise ValueError(
            f"the tokenizer ({len(tokenizer)} tokens) lacks {', '.join(lacking) or 'a padding token'}; call "
            "cogaze.data.collate.add_special_tokens on it and enlarge the text tower's embedding to len(tokenizer), or "
            "change the prompts"
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """B images with their texts, S sentences and labels, as tensors; P patches without CLS.

    pixels (B, H, W) uint8, which pixel_values turns into what a tower takes, or a frozen tower's stored vision_tokens
    (B, 1 + P, width) float16 in their place. sentence_image (S,): the image of each sentence, image after image, whose
    map is heatmap (S, P), 0 where there is none; which sentences, CollateConfig.sentences says. S is at least 1:
    where there is none, a dummy of weight 0 stands there. Masks over tokens are never empty. faults (B,): why a
    skipped sample could not be read.
    """

    pixels: Tensor
    vision_tokens: Tensor | None
    pixel_mean: Tensor
    pixel_std: Tensor
    patch_mask: Tensor
    view_position: Tensor
    study_id: Tensor
    valid: Tensor
    report_input_ids: Tensor
    report_mask: Tensor
    has_report: Tensor
    context_input_ids: Tensor
    context_mask: Tensor
    has_context: Tensor
    sentence_input_ids: Tensor
    sentence_mask: Tensor
    sentence_image: Tensor
    sentence_weight: Tensor
    heatmap: Tensor
    has_gaze: Tensor
    labels: Tensor
    label_mask: Tensor
    keys: tuple[str, ...]
    faults: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.valid)

    @property
    def pixel_values(self) -> Tensor:
        """Normalised pixels (B, 3, H, W) float32, made where the batch lies: a twelfth of the bytes travel."""
        return normalised(self.pixels, self.pixel_mean, self.pixel_std)

    @property
    def sentences_per_image(self) -> Tensor:
        """How many sentences each image has (B,) int64, without the dummy."""
        count = torch.zeros_like(self.study_id)
        return count.index_add_(0, self.sentence_image, (self.sentence_weight > 0).to(count.dtype))

    def model_inputs(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return what a model's forward takes of the batch: pictures, or a tower's tokens of them, and these fields."""
        tokens = self.vision_tokens
        seen = {"pixel_values": self.pixel_values} if tokens is None else {"vision_tokens": tokens.float()}
        return seen | {name: getattr(self, name) for name in names}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Move every tensor to a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Copy every tensor to page-locked memory, as a DataLoader does for tensors."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Any) -> Self:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if isinstance(value, Tensor)})


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn gray levels (B, H, W) uint8 into (gray level / 255 - mean) / std of each channel, (B, 3, H, W) float32."""
    scale, shift = 1 / (255 * std), -mean / std
    return torch.addcmul(shift[:, None, None], pixels[:, None].to(torch.float32), scale[:, None, None])


@dataclass(frozen=True)
class CollateConfig:
    """Prompts, label policy and the normalisation of pixels (gray level / 255 - mean) / std; RAD-DINO's by default.

    labels: published (1 and uncertain are 1, 0 and absent are 0, all count), mask_uncertain (uncertain ones do not
    count), mentioned (only 1 and 0 count). A sample without any label counts under no policy.
    sentences: "gaze" (CoGaze: those dictated under gaze that is used, each with its map, then the whole transcript
    with the whole reading's) or "all" (EGMA: the dictated ones likewise, without the transcript, one without gaze of
    its own under the whole reading's map; of any other image its report's, without map).
    """

    text: TextConfig = field(default_factory=TextConfig)
    labels: LabelPolicy = "published"
    sentences: SentenceRule = "gaze"
    pixel_mean: tuple[float, float, float] = (0.5307, 0.5307, 0.5307)
    pixel_std: tuple[float, float, float] = (0.2583, 0.2583, 0.2583)

    def __post_init__(self) -> None:
        if self.labels not in get_args(LabelPolicy):
            raise ValueError(f"collate.labels is {self.labels!r}, must be one of {', '.join(get_args(LabelPolicy))}")
        if self.sentences not in get_args(SentenceRule):
            raise ValueError(f"collate.sentences is {self.sentences!r}, must be {' or '.join(get_args(SentenceRule))}")
        if not min(self.pixel_std) > 0:
            raise ValueError(f"collate.pixel_std is {self.pixel_std}, must be positive")


@dataclass(frozen=True)
class LabelTargets:
    """Labels (N, 14) in {0, 1} and which of them count (N, 14)."""

    values: Tensor
    mask: Tensor


def label_targets(labels: npt.NDArray[np.integer], policy: LabelPolicy) -> LabelTargets:
    """Turn labels (N, 14) of 1, 0, -1 (uncertain), -2 (absent) into targets."""
    values = np.select([labels == code for code in LABEL_OF], list(LABEL_OF.values()))
    counts = ~np.isin(labels, MASKED[policy]) & (labels != LABEL_ABSENT).any(axis=1, keepdims=True)
    return LabelTargets(torch.from_numpy(values.astype(np.float32)), torch.from_numpy(counts))


def count_positives(labels: npt.NDArray[np.integer], policy: LabelPolicy) -> Tensor:
    """Count the positives of each class (14,) int64; raises ValueError where no sample has labels."""
    targets = label_targets(labels, policy)
    if not targets.mask.any():
        raise ValueError(
            f"none of the {len(labels)} samples has labels (policy {policy}); build the shards with a CheXpert table "
            "(sources.labels), or set the weight of the disease losses to 0"
        )
    return (targets.values.bool() & targets.mask).sum(dim=0)


@dataclass(frozen=True, eq=False)
class _Sentence:
    """A text of an image, and its map (P,)."""

    text: str
    heatmap: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Sentences:
    """Texts with image and map: texts S, image (S,), heatmap (S, P), weight (S,)."""

    texts: list[str]
    image: list[int]
    heatmap: npt.NDArray[np.float32]
    weight: list[float]

    @classmethod
    def of(cls, found: Sequence[Sequence[_Sentence]], patches: int) -> "_Sentences":
        """Line up the sentences of each image; a dummy where no image has any."""
        rows = [(i, one) for i, sentences in enumerate(found) for one in sentences if one.text.strip()]
        if not rows:
            return cls([""], [0], np.zeros((1, patches), dtype=np.float32), [0.0])
        return cls(
            texts=[one.text.strip() for _, one in rows],
            image=[i for i, _ in rows],
            heatmap=np.stack([one.heatmap for _, one in rows]),
            weight=[1.0] * len(rows),
        )


class Collate:
    """Examples -> Batch; raises ValueError where the tokenizer lacks a special token of the prompts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: CollateConfig | None = None) -> None:
        self.config = config or CollateConfig()
        self.tokenizer = tokenizer
        check_special_tokens(tokenizer, self.config.text)

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Return the batch of one or more examples, in their order."""
        reports = [self._report(example) for example in examples]
        contexts = [self.config.text.filled_context(example.sections) for example in examples]
        prompt = self.config.text.report
        report_ids, report_mask = self._tokens([prompt.format(report=text).strip() for text in reports])
        context_ids, context_mask = self._tokens(contexts)
        spoken = _Sentences.of(
            [self._sentences(*pair) for pair in zip(examples, reports, strict=True)], len(examples[0].patch_mask)
        )
        template = self.config.text.sentence
        sentence_ids, sentence_mask = self._tokens([template.format(sentence=text).strip() for text in spoken.texts])
        targets = label_targets(np.stack([example.labels for example in examples]), self.config.labels)
        heatmap = torch.from_numpy(spoken.heatmap)
        image = torch.tensor(spoken.image)
        has_gaze = torch.zeros(len(examples), dtype=torch.bool)
        has_gaze[image[heatmap.sum(dim=1) > 0]] = True
        return Batch(
            pixels=torch.from_numpy(np.stack([example.pixels for example in examples])),
            vision_tokens=_tokens_of(examples),
            pixel_mean=torch.tensor(self.config.pixel_mean),
            pixel_std=torch.tensor(self.config.pixel_std),
            patch_mask=torch.from_numpy(np.stack([example.patch_mask for example in examples])),
            view_position=torch.tensor([example.view_position for example in examples]),
            study_id=torch.tensor([example.study_id for example in examples]),
            valid=torch.tensor([example.valid for example in examples]),
            report_input_ids=report_ids,
            report_mask=report_mask,
            has_report=torch.tensor([bool(text) for text in reports]),
            context_input_ids=context_ids,
            context_mask=context_mask,
            has_context=torch.tensor([bool(text) for text in contexts]),
            sentence_input_ids=sentence_ids,
            sentence_mask=sentence_mask,
            sentence_image=image,
            sentence_weight=torch.tensor(spoken.weight),
            heatmap=heatmap,
            has_gaze=has_gaze,
            labels=targets.values,
            label_mask=targets.mask,
            keys=tuple(example.key for example in examples),
            faults=tuple(example.fault for example in examples),
        )

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizer beside a model."""
        self.tokenizer.save_pretrained(folder)

    def _report(self, example: Example) -> str:
        present = (example.sections[name].strip() for name in self.config.text.report_sections)
        return next((text for text in present if text), "")

    def _sentences(self, example: Example, report: str) -> list[_Sentence]:
        if self.config.sentences == "gaze":
            return _dictated(example) + _whole_transcript(example)
        spoken = [
            replace(one, heatmap=one.heatmap if one.heatmap.any() else example.maps[0]) for one in _dictated(example)
        ]
        nowhere = np.zeros(len(example.patch_mask), dtype=np.float32)
        return spoken or [_Sentence(text, nowhere) for text in report_sentences(report)]

    def _tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Tokenize to ids and mask (texts, length); a text without tokens holds one padding token that counts."""
        lists = self.tokenizer(
            texts, add_special_tokens=False, truncation=True, max_length=self.config.text.max_tokens
        )["input_ids"]
        rows = [row or [self.tokenizer.pad_token_id] for row in lists]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lengths.max())), self.tokenizer.pad_token_id)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return ids, torch.arange(ids.shape[1])[None] < lengths[:, None]


def _tokens_of(examples: Sequence[Example]) -> Tensor | None:
    found = [example.tokens for example in examples if example.tokens is not None]
    return torch.from_numpy(np.stack(found)) if found else None


def _dictated(example: Example) -> list[_Sentence]:
    """Pair the sentences of gaze that is used with their maps."""
    if not len(example.maps):
        return []
    return [_Sentence(*pair) for pair in zip(example.sentences, example.maps[1:], strict=True)]


def _whole_transcript(example: Example) -> list[_Sentence]:
    if not len(example.maps):
        return []
    return [_Sentence(example.transcript.strip() or " ".join(example.sentences), example.maps[0])]


def report_sentences(report: str) -> list[str]:
    """Split a report at its full stops, as dictated phrases are; what holds no letter (the number of a list) goes."""
    pieces = split_phrases((Word(report, 0.0, 0.0),))
    return [piece.text for piece in pieces if any(character.isalpha() for character in piece.text)]
