"""The trained model as a folder that from_pretrained reads: weights, tokenizer, card."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.state_dict import get_model_state_dict

from cogaze.card import Facts, model_card
from cogaze.checkpoint import WHOLE, Position, hidden, publish, versions
from cogaze.config import public_name
from cogaze.methods import parts_of
from cogaze.run import Run

RUN = "run.json"


def export(run: Run, folder: Path, position: Position, results: Mapping[str, float]) -> None:
    """Write model, tokenizer and card as a folder that from_pretrained reads; with the moving average, its weights.

    run.json is the config, by which evaluation reads images and texts as training did.
    """
    weights = get_model_state_dict(run.wrapped, options=WHOLE)
    if run.accelerator.is_main_process:
        weights |= {} if run.trained.average is None else run.trained.average.shadow
        for alias, kept in run.model.all_tied_weights_keys.items():
            if kept in weights:  # of a language model that stays as it is, they are not
                weights[alias] = weights[kept]  # the average has a tied weight once
        unfinished = hidden(folder)
        shutil.rmtree(unfinished, ignore_errors=True)
        run.model.save_pretrained(unfinished, state_dict=weights)
        run.collate.save_pretrained(unfinished)
        said = _public_config(run)
        (unfinished / RUN).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (unfinished / "README.md").write_text(model_card(_facts(run, position, results)), encoding="utf-8")
        publish(unfinished, folder)
    run.accelerator.wait_for_everyone()


def _facts(run: Run, position: Position, results: Mapping[str, float]) -> Facts:
    tables = [stream.dataset.table for stream in (run.train, run.validation) if stream is not None]
    parts = parts_of(run.config)
    return Facts(
        method={
            "title": parts.title,
            "about": parts.about,
            "paper": parts.paper,
            "origin": parts.origin,
            "model": parts.model.__name__,
            "module": parts.model.__module__,
        },
        data={
            table.split: {
                "samples": len(table),
                "with gaze": int(table.has_gaze.sum()),
                "studies": len(set(table.study_id.tolist())),
            }
            for table in tables
        },
        course={
            "steps": position.steps_done,
            "steps skipped": position.skipped,
            **({"corrupt samples skipped, in all epochs": position.corrupt} if run.config.data.skip_corrupt else {}),
            "samples a step": run.config.plan.global_batch,
            "processes": run.accelerator.num_processes,
            "device": run.accelerator.device.type,
            "precision": run.accelerator.mixed_precision,
        },
        results=results,
        versions=versions(),
        config=_public_config(run),
    )


def _public_config(run: Run) -> dict[str, Any]:
    config = run.config.resolved()
    towers = {name: public_name(config["model"][name]) for name in run.config.model.names}
    return {**config, "model": {**config["model"], **towers}}
