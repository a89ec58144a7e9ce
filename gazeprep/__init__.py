"""From eye-tracking recordings, radiographs and reports to gaze maps and WebDataset shards."""

from gazeprep.fixations import Filters, Frame, mark_fixations
from gazeprep.maps import render, render_batch
from gazeprep.schema import Fixations, InputError, Sentence, Word
from gazeprep.sources import load_fixations
from gazeprep.transcripts import Alignment, sentence_weights, sentences_of

__all__ = [
    "Alignment",
    "Filters",
    "Fixations",
    "Frame",
    "InputError",
    "Sentence",
    "Word",
    "load_fixations",
    "mark_fixations",
    "render",
    "render_batch",
    "sentence_weights",
    "sentences_of",
]
