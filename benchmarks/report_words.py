"""Words of real reports against Java's: python benchmarks/report_words.py --wheel torchxrayvision-1.5.7-*.whl.

Open-i's reports by our rule and by pycocoevalcap's PTBTokenizer (Stanford's, which needs Java): how many have the same
words, also written otherwise. Then the figures, end to end both ways, of texts whose first half is the report's own and
whose second half is the next report's. Prints counts and figures alone; the wheel comes by
`pip download --no-deps torchxrayvision==1.5.7`.
"""

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from cogaze.evaluate.reports.overlap import Overlap
from cogaze.evaluate.reports.scorers import Reports
from cogaze.evaluate.reports.words import ptb_words
from cogaze.evaluate.scores import Intervals
from gazeprep.sources.open_files import openi_reports

# Other ways in which reports are written, of the same ones.
OTHERWISE = {
    "in upper case": str.upper,
    "names and dates as ___": lambda text: text.replace("XXXX", "___"),
    "punctuation apart": lambda text: re.sub(r"([.,;:])", r" \1 ", text.lower()),
    "no blank after a full stop": lambda text: text.replace(". ", "."),
}


def main() -> None:
    """Compare words, then figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True)
    options = parser.parse_args()
    contexts = openi_reports(options.wheel)
    reports = [" ".join(one for one in (each.findings, each.impression) if one) for each in contexts]
    reports = [one for one in reports if one]
    compare_words("findings and impression", reports)
    compare_words(
        "indications and comparisons", [one for each in contexts for one in (each.indication, each.comparison) if one]
    )
    for name, written in OTHERWISE.items():
        compare_words(f"findings and impression, {name}", [written(one) for one in reports])
    compare_figures(reports)


def compare_words(name: str, texts: Sequence[str]) -> None:
    """Print how many texts have the same words either way."""
    theirs = java_words(texts)
    same = sum(" ".join(ptb_words(text)) == words for text, words in zip(texts, theirs, strict=True))
    print(f"{name}: {same} of {len(texts)} texts have the same words ({same / len(texts):.2%})")


def java_words(texts: Sequence[str]) -> list[str]:
    """Return each text's words as pycocoevalcap joins them."""
    found = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(texts)})
    return [" ".join(found[number][0].split()) for number in range(len(texts))]


def compare_figures(references: Sequence[str]) -> None:
    """Print every figure both ways: half of each text is the reference's own, half the next report's."""
    after = [*references[1:], references[0]]
    halves = [(own[: len(own) // 2], other[len(other) // 2 :]) for own, other in zip(references, after, strict=True)]
    texts = [f"{own} {other}" for own, other in halves]
    keys = tuple(str(number) for number in range(len(texts)))
    started = time.perf_counter()
    scored = Overlap().score(Reports(keys, tuple(references), tuple(texts), np.array(keys)), Intervals(1000))
    took = time.perf_counter() - started
    there, said = ({i: [one] for i, one in enumerate(java_words(each))} for each in (references, texts))
    bleu = Bleu(4).compute_score(there, said, verbose=0)[0]
    theirs = [*bleu, Rouge().compute_score(there, said)[0], Cider().compute_score(there, said)[0]]
    for figure, value in zip(scored.figures, theirs, strict=True):
        print(f"{figure.name}: {figure.value:.5f}, pycocoevalcap with Java {value:.5f}")
    print(f"{len(texts)} reports with 1000 resamples: {took:.1f} s")


if __name__ == "__main__":
    main()
