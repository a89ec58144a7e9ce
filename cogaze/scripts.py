"""Which script a decoder has: how its reports become tokens, in training and when a saved model writes."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from cogaze.config import ReportRun
from cogaze.data.chat import ChatScript
from cogaze.data.collate import Collate
from cogaze.data.dataset import SampleTable, ShardDataset
from cogaze.data.lines import PlainScript, Script
from cogaze.data.targets import Targets
from cogaze.frozen import stored_tokens
from cogaze.hints import Looker, hints
from cogaze.models.cogaze import CoGazeModel
from cogaze.models.llm import check_length, language_model_config, load_chat_tokenizer


def training_script(config: ReportRun, targets: Mapping[str, Targets], tokenizer: PreTrainedTokenizerBase) -> Script:
    """Return the script of a run's decoder, which for a language model first looks for hints.

    targets: by split, "train" among them. Raises ValueError where prompt and text are too long for the decoder.
    """
    decoder = config.model.decoder
    if decoder.kind == "cross_attention":
        return PlainScript(tokenizer, config.target.max_tokens)
    with torch.random.fork_rng(devices=[]):  # so that a run is the same whether or not it finds its hints made
        return _chat(config, targets, tokenizer)


def _chat(config: ReportRun, targets: Mapping[str, Targets], tokenizer: PreTrainedTokenizerBase) -> ChatScript:
    decoder = config.model.decoder
    encoder = CoGazeModel.from_pretrained(config.model.encoder).eval()
    latents = 2 * encoder.config.perceiver_latents
    chat = load_chat_tokenizer(decoder.model_name)
    script = ChatScript(chat, config.prompt, latents, config.target.max_tokens)
    check_length(language_model_config(decoder.model_name), script.most_tokens())
    if not config.prompt.asks_for_hints:
        return script
    asked = [one.table for one in targets.values()]
    looker = _looker(config, encoder, Collate(tokenizer, config.collate))
    return script.hinted(hints(looker, config.shards, asked, targets["train"], config.prompt, config.out))


def _looker(config: ReportRun, encoder: CoGazeModel, collate: Collate) -> Looker:
    data = replace(config.data, skip_corrupt=True)

    def dataset(table: SampleTable) -> ShardDataset:
        view = data.view if table.split == "train" else data.view.still()
        features = stored_tokens(config, table, view, encoder.vision) if data.features else None
        return ShardDataset(config.shards, table, encoder.patch_grid, data.still(), features)

    return Looker(
        model=encoder.to(PartialState().device),
        sha256=config.model.encoder_sha256,
        dataset=dataset,
        collate=collate,
        workers=config.workers.workers,
        skip_corrupt=config.data.skip_corrupt,
    )
