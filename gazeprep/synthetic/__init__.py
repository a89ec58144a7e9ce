"""Recordings with a known answer, written in the sources' exact layouts from a drawn chest."""

from gazeprep.synthetic.corpus import Corpus, write_corpus
from gazeprep.synthetic.mimic_eye import write_mimic_eye
from gazeprep.synthetic.truth import Truth, read_truth

__all__ = ["Corpus", "Truth", "read_truth", "write_corpus", "write_mimic_eye"]
