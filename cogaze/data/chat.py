"""What a language model is told of an image, and what it is to answer: a chat with latents among its tokens."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cogaze.data.lines import Lines, lined_up
from cogaze.losses.words import IGNORED
from gazeprep.schema import CHEXPERT_LABELS

By = Literal["report", "image"]
FOLDER, FILE = "decoder_tokenizer", "prompt.json"
LATENTS, SIMILAR, DISEASES, ANSWER = "{latents}", "{similar}", "{diseases}", "{answer}"
SLOTS = re.compile(r"(\{latents\}|\{similar\}|\{diseases\})")
A_LATENT = -1  # stands for one among token numbers
DAY = "01 Jan 2026"  # templates tell the day, which is to move nothing

SYSTEM = "You write the findings of chest X-rays as a radiologist would: briefly, and in the words of the trade."
USER = """Image and clinical context: {latents}
Report of another patient whose image looks alike: {similar}
What a classifier suspects: {diseases}
Take that report as a draft and put right what the image shows otherwise.
Name a suspected disease only where the image bears it out. Answer with the findings alone."""


@dataclass(frozen=True)
class PromptConfig:
    """What the language model is told.

    user: {latents} stands for image and context and must be there once; {similar}, the report of a similar case, and
    {diseases}, the predicted ones, may be. similar_tokens: the last so many of that report are shown, as published.
    no_similar, no_disease: what is said where there is none. similar_by: the training study whose "report" the image is
    nearest to, as pretraining aligned them, or whose "image". disease_threshold: the least probability of a disease.
    """

    system: str = SYSTEM
    user: str = USER
    similar_tokens: int = 100
    no_similar: str = "none"
    no_disease: str = "none"
    similar_by: By = "report"
    disease_threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.user.count(LATENTS) != 1 or SLOTS.search(self.system):
            raise ValueError(
                f"prompt.user must hold {LATENTS} once, and prompt.system no placeholder; the others are {SIMILAR} and "
                f"{DISEASES}"
            )
        if self.similar_tokens < 1 or not 0 < self.disease_threshold < 1:
            raise ValueError(
                f"prompt.similar_tokens is {self.similar_tokens} and prompt.disease_threshold {self.disease_threshold};"
                " must be at least 1, and between 0 and 1"
            )
        if self.similar_by not in get_args(By):
            raise ValueError(f"prompt.similar_by is {self.similar_by!r}, must be {' or '.join(get_args(By))}")

    @property
    def asks_for_hints(self) -> bool:
        """Whether a similar case or predicted diseases are told."""
        return SIMILAR in self.user or DISEASES in self.user


@dataclass(frozen=True)
class Hint:
    """The report of a similar case, "" for none, and the names of the predicted diseases."""

    similar: str = ""
    diseases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chat:
    """A prompt with its placeholders, as a tokenizer's template words it, and the token that ends an answer."""

    text: str
    end: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, config: PromptConfig) -> Self:
        """Word a prompt; raises ValueError where the template loses the image, or nothing ends an answer."""
        if tokenizer.chat_template is None:
            text = "".join(f"{part}\n\n" for part in (config.system, config.user) if part)
            return cls((tokenizer.bos_token or "") + text, _end(tokenizer, ""))
        text = _worded(tokenizer, config)
        if text.count(LATENTS) != 1:
            raise ValueError(
                f"the tokenizer's chat template does not keep {LATENTS} of prompt.user; take another model"
            )
        answered = _worded(tokenizer, config, ANSWER)
        return cls(text, _end(tokenizer, answered.rpartition(ANSWER)[2]))


class ChatScript:
    """A chat in which the answer is the report: what a decoder reads that gets the latents in its prompt.

    latents: how many there are of an image. hints: by key, of every sample that is to be put into tokens, where the
    prompt asks for any; None tells of no similar case and no disease. No word of a report is taken for a special token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PromptConfig,
        latents: int,
        max_tokens: int,
        hints: Mapping[str, Hint] | None = None,
        chat: Chat | None = None,
    ) -> None:
        self.tokenizer, self.config, self.latents, self.max_tokens = tokenizer, config, latents, max_tokens
        self.chat = chat or Chat.of(tokenizer, config)
        self._hints = hints
        self._pieces = [
            piece if SLOTS.fullmatch(piece) else self._ids(piece, special=True) for piece in SLOTS.split(self.chat.text)
        ]

    def taught(self, keys: Sequence[str], texts: Sequence[str]) -> Lines:
        """Put prompt and text into tokens, the text cut to max_tokens with the end, which it then does not have."""
        said = [[*self._ids(text), self.chat.end][: self.max_tokens] if text else [] for text in texts]
        told = [self._told(key) if own else [] for key, own in zip(keys, said, strict=True)]
        shown = [[*prompt, *own[:-1]] for prompt, own in zip(told, said, strict=True)]
        after = [[IGNORED] * (len(prompt) - 1) + own for prompt, own in zip(told, said, strict=True)]
        return self._lines(shown, after)

    def begun(self, keys: Sequence[str]) -> Lines:
        """Put the prompt alone into tokens."""
        told = [self._told(key) for key in keys]
        return self._lines(told, [[IGNORED] * len(prompt) for prompt in told], left=True)

    def read(self, written: Tensor) -> list[str]:
        """Turn what was written into texts, up to the first end."""
        rows = [row[: row.index(self.chat.end)] if self.chat.end in row else row for row in written.tolist()]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def options(self) -> dict[str, Any]:
        """Return end and padding."""
        return {"bos_token_id": self.tokenizer.bos_token_id, "eos_token_id": self.chat.end, "pad_token_id": self.pad}

    def hinted(self, hints: Mapping[str, Hint]) -> Self:
        """Return the script that tells these."""
        return type(self)(self.tokenizer, self.config, self.latents, self.max_tokens, hints, self.chat)

    def most_tokens(self) -> int:
        """Return how many tokens prompt and text may take, were all diseases predicted."""
        fixed = sum(len(piece) for piece in self._pieces if not isinstance(piece, str))
        slots = [piece for piece in self._pieces if isinstance(piece, str)]
        diseases = len(self._ids(", ".join(CHEXPERT_LABELS)))
        most = {LATENTS: self.latents, SIMILAR: self.config.similar_tokens, DISEASES: diseases}
        return fixed + sum(most[slot] for slot in slots) + self.max_tokens

    def save_pretrained(self, folder: Path) -> None:
        """Write tokenizer and prompt into a folder beside a model."""
        self.tokenizer.save_pretrained(folder / FOLDER)
        said = {"chat": asdict(self.chat), "prompt": asdict(self.config)}
        (folder / FOLDER / FILE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: Path, latents: int, max_tokens: int) -> Self:
        """Read what save_pretrained wrote, still without hints; raises ValueError where it is not there."""
        try:
            stated = json.loads((folder / FOLDER / FILE).read_text(encoding="utf-8"))
            config, chat = PromptConfig(**stated["prompt"]), Chat(**stated["chat"])
            tokenizer = AutoTokenizer.from_pretrained(folder / FOLDER)
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"the model's folder has no readable {FOLDER} ({type(error).__name__}); give the folder that"
                " pipelines/finetune.py exported"
            ) from None
        return cls(tokenizer, config, latents, max_tokens, chat=chat)

    @property
    def pad(self) -> int:
        """The number of a token that pads, which is masked wherever it stands."""
        own = self.tokenizer.pad_token_id
        return self.chat.end if own is None else int(own)

    def _told(self, key: str) -> list[int]:
        """Return a sample's prompt, A_LATENT where a latent stands."""
        hint = Hint() if self._hints is None else self._hints[key]
        filled = {
            LATENTS: [A_LATENT] * self.latents,
            SIMILAR: self._ids(hint.similar or self.config.no_similar)[-self.config.similar_tokens :],
            DISEASES: self._ids(", ".join(hint.diseases) or self.config.no_disease),
        }
        return [number for piece in self._pieces for number in (filled[piece] if isinstance(piece, str) else piece)]

    def _lines(self, shown: Sequence[Sequence[int]], after: Sequence[Sequence[int]], *, left: bool = False) -> Lines:
        lines = lined_up(shown, after, self.pad, left=left)
        latents = lines.input_ids == A_LATENT
        return replace(lines, input_ids=lines.input_ids.masked_fill(latents, self.pad), latents=latents)

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]
        return found


def _worded(tokenizer: PreTrainedTokenizerBase, config: PromptConfig, answer: str = "") -> str:
    """Let the template word system and user, and an answer or its beginning; together where it knows no system."""
    from jinja2.exceptions import TemplateError  # comes with the extra llm

    user = [{"role": "user", "content": config.user}]
    told = [{"role": "system", "content": config.system}, *user] if config.system else user
    together = [{"role": "user", "content": f"{config.system}\n\n{config.user}"}]
    tail = [{"role": "assistant", "content": answer}] if answer else []
    how: dict[str, Any] = {"tokenize": False, "add_generation_prompt": not answer, "date_string": DAY}
    try:
        return str(tokenizer.apply_chat_template(told + tail, **how))
    except TemplateError:
        return str(tokenizer.apply_chat_template(together + tail, **how))


def _end(tokenizer: PreTrainedTokenizerBase, after: str) -> int:
    """Return the special token that follows an answer in the template, else the one that ends a text."""
    following = tokenizer(after.strip(), add_special_tokens=False)["input_ids"] if after.strip() else []
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    if following and following[0] in special:
        return int(following[0])
    if tokenizer.eos_token_id is None:
        raise ValueError("the language model's tokenizer has no token that ends a text; set its eos_token")
    return int(tokenizer.eos_token_id)
