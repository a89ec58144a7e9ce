"""Which script a decoder has: how its reports become tokens, in training and when a saved model writes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from cogaze.data.chat import ChatScript
from cogaze.data.collate import Collate
from cogaze.data.dataset import SampleTable, ShardDataset, read_folder, read_table
from cogaze.data.lines import PlainScript, Script
from cogaze.data.targets import TargetConfig, Targets, read_targets
from cogaze.frozen import stored_tokens
from cogaze.hints import Looker, hints
from cogaze.models.cogaze import CoGazeModel
from cogaze.models.llm import check_length, language_model_config, load_chat_tokenizer
from cogaze.models.report import ReportModel, pretrained_encoder
from cogaze.report_config import ReportRun


def training_script(config: ReportRun, targets: Mapping[str, Targets], tokenizer: PreTrainedTokenizerBase) -> Script:
    """Return the script of a run's decoder, which for a language model first looks for hints, of all splits.

    targets: by split, "train" among them. Raises ValueError where prompt and text are too long for the decoder.
    """
    if config.model.decoder.kind == "cross_attention":
        return PlainScript(tokenizer, config.target.max_tokens)
    encoder = pretrained_encoder(config.model.encoder).eval()
    script = _chat(config, 2 * encoder.config.perceiver_latents)
    if not config.prompt.asks_for_hints:
        return script
    encoder.to(PartialState().device)
    looker = Looker(
        encoder,
        config.model.encoder_sha256,
        _datasets(config, encoder, targets.keys()),
        Collate(tokenizer, config.collate),
        config.workers.workers,
        config.data.skip_corrupt,
    )
    held = set(read_folder(config.shards).index["split"])
    judged = [read_table(config.shards, split) for split in ("validate", "test") if split in held]
    asked = [targets["train"].table, *judged]
    cases = targets["train"]
    if config.target.table:  # whose texts are not told: a case has its own report
        cases = read_cases(config.shards, config.target, config.data.skipped_in_a_row)
    return told(script, looker, config.shards, asked, cases, [config.out])


def saved_script(folder: Path, model: ReportModel, tokenizer: PreTrainedTokenizerBase, target: TargetConfig) -> Script:
    """Return the script of a model that a run exported; a language model's is still without hints."""
    if model.config.language_model is None:
        return PlainScript(tokenizer, target.max_tokens)
    return ChatScript.from_pretrained(folder, 2 * model.encoder.config.perceiver_latents, target.max_tokens)


def told(
    script: ChatScript,
    looker: Looker,
    shards: str,
    asked: Sequence[SampleTable],
    cases: Targets,
    kept: Sequence[Path],
) -> ChatScript:
    """Return a script with the hints of these samples; similar ones are among the cases."""
    return script.hinted(hints(looker, shards, asked, cases, script.config, kept))


def read_cases(shards: str, target: TargetConfig, skipped_in_a_row: int = 0) -> Targets:
    """Read the cases that may be told: the training split's samples with a report of their own."""
    own = replace(target, table="")
    return read_targets(shards, read_table(shards, "train"), own, skipped_in_a_row=skipped_in_a_row)


def _chat(config: ReportRun, latents: int) -> ChatScript:
    name = config.model.decoder.model_name
    script = ChatScript(load_chat_tokenizer(name), config.prompt, latents, config.target.max_tokens)
    check_length(language_model_config(name), script.most_tokens())
    return script


def _datasets(
    config: ReportRun, encoder: CoGazeModel, stored: Collection[str]
) -> Callable[[SampleTable], ShardDataset]:
    """Return what reads a table's samples; the tower's tokens are stored of some splits, if at all."""
    data = replace(config.data.still(), skip_corrupt=True)

    def dataset(table: SampleTable) -> ShardDataset:
        view = config.data.view if table.split == "train" else data.view
        features = (
            stored_tokens(config, table, view, encoder.vision) if data.features and table.split in stored else None
        )
        return ShardDataset(config.shards, table, encoder.patch_grid, data, features)

    return dataset
