"""Score generated reports: python pipelines/score.py --generated FOLDER --out SCORES.

FOLDER is what pipelines/generate.py wrote, or any .parquet, .csv or .jsonl file with the columns `reference` and
`text`. Writes SCORES/results.json, results.md and scores.parquet (each report's own scores) after each scorer;
docs/reports.md says what the figures are.
"""

import sys

from jsonargparse import ArgumentParser

from cogaze.evaluate.reports.score import ScoreConfig, score
from cogaze.stopped import STOPS, one_line


def main() -> int:
    """Parse, score, print the results: 0 done, 1 a problem or a failed scorer, 2 wrong usage."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_class_arguments(ScoreConfig, None, fail_untyped=False)
    options = parser.parse_args()
    try:
        values = parser.instantiate(options)
        del values["config"]
        config = ScoreConfig(**vars(values))
        results = score(config)
    except STOPS as error:
        print(f"score: {one_line(error)}", file=sys.stderr)
        return 1
    print(results.markdown())
    return 1 if config.failed(results) else 0


if __name__ == "__main__":
    sys.exit(main())
