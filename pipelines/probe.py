"""Does it learn? python pipelines/probe.py --config configs/demo.yaml --shards SHARDS --out OUT --seeds '[0, 1, 2]'.

Trains each condition with each seed (or goes on where it stopped), evaluates what was saved on the validate and test
splits, and prints a table: mean ± standard deviation over the seeds. EGMA has configs/egma_demo.yaml.
"""

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch

from cogaze.config import RunConfig, from_options, run_parser
from cogaze.evaluate.control import Dealt, deal_out
from cogaze.evaluate.quick import evaluate_folder
from cogaze.fit import fit
from cogaze.step import NonFiniteLossError
from gazeprep.shards import ShardFolder, sha256_of

DEALT: dict[str, Dealt] = {"shuffled": "image and context", "other images": "image"}
CONDITIONS = {
    "trained": "the config as it is",
    "untrained": "one step at a rate of 1e-12",
    "shuffled": "training images and contexts dealt out to other studies' reports, labels and gaze",
    "other images": "training images dealt out to other studies' contexts, reports, labels and gaze",
    "no gaze": "objective.gaze is 0",
    "no context": "the context prompt is empty in training and evaluation",
    "gaze 0": "plan.gaze_ratio is 0: no reading's gaze is used in training",
    "gaze 0.01": "plan.gaze_ratio is 0.01, the share of the readings whose gaze is used in training",
    "gaze 0.1": "plan.gaze_ratio is 0.1",
    "gaze 0.5": "plan.gaze_ratio is 0.5",
}
OF_METHOD = {
    "cogaze": ("trained", "untrained", "shuffled", "other images", "no gaze", "no context"),
    "egma": ("trained", "untrained", "shuffled", "gaze 0", "gaze 0.01", "gaze 0.1", "gaze 0.5"),
}
SHARE = "gaze "


def condition(base: RunConfig, name: str, seed: int) -> RunConfig:
    """Return the run of a condition and seed."""
    run = replace(base, out=base.out / f"{name.replace(' ', '-')}-{seed}", fit=replace(base.fit, seed=seed))
    run = replace(run, plan=replace(run.plan, seed=seed), data=replace(run.data, seed=seed))
    if name == "untrained":
        run = replace(run, optim=replace(run.optim, lr=1e-12), fit=replace(run.fit, max_steps=1))
    elif name in DEALT:
        shards = base.out / f"{name.replace(' ', '-')}-shards-{seed}"
        deal_out(Path(base.shards), shards, seed, DEALT[name])
        run = replace(run, shards=str(shards))
    elif name == "no gaze":
        run = replace(run, objective=replace(run.objective, gaze=0.0))
    elif name == "no context":
        text = replace(run.collate.text, context="[CLS]")
        run = replace(run, collate=replace(run.collate, text=text))
    elif name.startswith(SHARE):
        run = replace(run, plan=replace(run.plan, gaze_ratio=float(name.removeprefix(SHARE))))
    return run


def figures(base: RunConfig, name: str, seed: int) -> dict[str, float]:
    """Train a condition and evaluate it on the real held-out shards; what is there already is taken as it is.

    Raises ValueError where it was made from other shards or under another config.
    """
    run = condition(base, name, seed)
    kept = run.out / "figures.json"
    made_from = {**run.resolved(), "index": sha256_of(Path(base.shards) / "index.parquet")}
    if kept.exists():
        found = json.loads(kept.read_text())
        if found["made_from"] != made_from:
            what = f"{run.out.name} holds figures of other shards or another config"
            raise ValueError(f"{what}; remove it or change --out")
        return dict(found["figures"])
    if not (run.out / "model").exists():
        fit(run)
    values = evaluate_folder(replace(run, shards=base.shards), run.out / "model")
    kept.write_text(json.dumps({"figures": values, "made_from": made_from}, indent=2) + "\n")
    return values


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Lay out figures by row and conditions by column in Markdown."""
    lines = [f"| | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for figure in next(iter(results.values()))[0]:
        cells = [_cell([one.get(figure, float("nan")) for one in seeds]) for seeds in results.values()]
        lines.append(f"| {figure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    digits = 0 if all(value == int(value) for value in values if value == value) and max(values) > 1 else 3
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 or len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


def main() -> int:
    """Parse, train and evaluate each condition with each seed, print."""
    parser = run_parser(__doc__)
    parser.add_argument("--seeds", type=list[int], default=[0])
    parser.add_argument("--conditions", type=list[str], default=[])
    options = parser.parse_args()
    of_method = OF_METHOD[options.method]
    asked = options.conditions or of_method
    unknown = set(asked) - set(of_method)
    if unknown:
        print(f"probe: no condition {sorted(unknown)}; choose from {list(of_method)}", file=sys.stderr)
        return 1
    try:
        base = from_options(parser, options)
        ShardFolder(base.shards)  # stops here where there is none
        results = {name: [figures(base, name, seed) for seed in options.seeds] for name in of_method if name in asked}
    except (ValueError, NonFiniteLossError, torch.OutOfMemoryError) as error:
        print(f"probe: {error}", file=sys.stderr)
        return 1
    for name in results:
        print(f"{name}: {CONDITIONS[name]}")
    print(f"seeds {options.seeds}\n\n{table(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
