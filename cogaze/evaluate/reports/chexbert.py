"""CheXbert's labels of reports, from the published weights: a BERT with 14 linear heads on its first token.

Weights: chexbert.pth, which github's stanfordmlgroup/CheXbert links to; docs/reports.md has the address.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel

from cogaze.evaluate.datasets.chexpert_table import FINDINGS
from cogaze.evaluate.reports.label_f1 import IntArray, checked_rule, label_scores
from cogaze.evaluate.reports.scorers import Beside, Reports, Scored
from cogaze.evaluate.results import NotRunError
from cogaze.evaluate.scores import Intervals
from gazeprep.schema import CHEXPERT_LABELS, LABEL_ABSENT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEADS = (*FINDINGS[1:], FINDINGS[0])  # CheXpert's own order, but No Finding last
CODES = np.array([LABEL_ABSENT, 1, 0, -1])  # of the classes blank, positive, negative, uncertain
CLASSES, CLASSES_OF_NO_FINDING = 4, 2  # "No Finding" is blank or positive
LONGEST = 512  # tokens
WIDTH_OF_A_HEAD = 64  # of attention, in every BERT of that time
IN_CHECKPOINT, OF_DATA_PARALLEL = "model_state_dict", "module."
OF_OLD_TRANSFORMERS = "bert.embeddings.position_ids"  # 0 to 511, a buffer that newer ones do not store
HOW = (
    "get chexbert.pth by the link in the readme of github's stanfordmlgroup/CheXbert (also in StanfordAIMI/RRG_scorers "
    "on the Hugging Face hub) and pass --chexbert.weights FILE"
)


class CheXbert(nn.Module):
    """BERT and a linear head for each label; parameters have the names of the published checkpoint."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.bert = BertModel(config)
        classes = [CLASSES] * (len(HEADS) - 1) + [CLASSES_OF_NO_FINDING]
        self.linear_heads = nn.ModuleList(nn.Linear(config.hidden_size, count) for count in classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """Return the logits of each head: (B, 4), the last (B, 2), of tokens (B, T)."""
        first = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        return [head(first) for head in self.linear_heads]

    @torch.inference_mode()
    def codes(self, input_ids: Tensor, attention_mask: Tensor) -> IntArray:
        """Return the likeliest code of each label (B, 14), in the order of CHEXPERT_LABELS."""
        classes = torch.stack([one.argmax(dim=1) for one in self(input_ids, attention_mask)], dim=1).cpu().numpy()
        return CODES[classes[:, [HEADS.index(label) for label in CHEXPERT_LABELS]]]


def load_chexbert(file: Path) -> CheXbert:
    """Load published weights. Raises NotRunError where there is no file, ValueError where it holds something else."""
    if not file.is_file():
        raise NotRunError(f"CheXbert's weights {file.name} are not there; {HOW}")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file.name} cannot be read as weights ({type(error).__name__}); {HOW}") from None
    if not isinstance(loaded, Mapping) or IN_CHECKPOINT not in loaded:
        raise ValueError(f"{file.name} has no {IN_CHECKPOINT!r} and is not CheXbert's checkpoint; {HOW}")
    state = {name.removeprefix(OF_DATA_PARALLEL): value for name, value in loaded[IN_CHECKPOINT].items()}
    state.pop(OF_OLD_TRANSFORMERS, None)
    try:
        model = CheXbert(config_of(state))
        model.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{file.name}: {type(error).__name__}, it is not CheXbert's checkpoint; {HOW}") from None
    return model.eval()


def config_of(state: Mapping[str, Tensor]) -> BertConfig:
    """Return the sizes of a BERT from its weights, so that no model hub is asked for a configuration."""
    words = state["bert.embeddings.word_embeddings.weight"]
    layers = {name.split(".")[3] for name in state if name.startswith("bert.encoder.layer.")}
    return BertConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, words.shape[1] // WIDTH_OF_A_HEAD),
        intermediate_size=state["bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=state["bert.embeddings.position_embeddings.weight"].shape[0],
    )


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load BERT's tokenizer by a folder or a name on the model hub. Raises NotRunError where it is not there."""
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise NotRunError(
            f"CheXbert's tokenizer {Path(name).name!r} cannot be loaded ({type(error).__name__}); pass "
            "--chexbert.tokenizer FOLDER, a folder with the tokenizer of bert-base-uncased"
        ) from None


def codes_of(
    texts: Sequence[str], model: CheXbert, tokenizer: "PreTrainedTokenizerBase", device: str, batch: int
) -> IntArray:
    """Label texts (N, 14), those of one length together; blanks are single, what exceeds 512 tokens is cut."""
    codes = np.full((len(texts), len(HEADS)), LABEL_ABSENT, dtype=np.int64)
    plain = [" ".join(text.split()) for text in texts]
    order = sorted(range(len(plain)), key=lambda place: len(plain[place]))
    model.to(device)
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        tokens = tokenizer(
            [plain[place] for place in places],
            padding=True,
            truncation=True,
            max_length=LONGEST,
            return_tensors="pt",
        ).to(device)
        codes[places] = model.codes(tokens["input_ids"], tokens["attention_mask"])
    return codes


@dataclass(frozen=True)
class CheXbertF1:
    """F1 of the labels that CheXbert finds, as it is published.

    weights: chexbert.pth. tokenizer: of bert-base-uncased, a folder or a name on the model hub. rule: what an uncertain
    finding counts as, one of label_f1.RULES. batch: reports at once. device: such as cuda; auto takes it where it is.
    """

    weights: Path | None = None
    tokenizer: str = "bert-base-uncased"
    rule: str = "uncertain is yes"
    batch: int = 32
    device: str = "auto"

    name: ClassVar[str] = "label F1 (CheXbert)"
    beside: ClassVar[tuple[Beside, ...]] = ()

    def __post_init__(self) -> None:
        checked_rule(self.rule)
        if self.batch < 1:
            raise ValueError(f"chexbert.batch is {self.batch}, must be at least 1")

    def score(self, reports: Reports, intervals: Intervals) -> Scored:
        """Score N reports. Raises NotRunError where weights or tokenizer are missing."""
        if self.weights is None:
            raise NotRunError(f"CheXbert's weights are not given; {HOW}")
        model, tokenizer = load_chexbert(self.weights), load_tokenizer(self.tokenizer)
        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

        def label(texts: Sequence[str]) -> IntArray:
            return codes_of(texts, model, tokenizer, device, self.batch)

        return label_scores(label, "CheXbert", reports, self.rule, intervals)
