"""From eye-tracking recordings, radiographs and reports to gaze maps and WebDataset shards."""

from gazeprep.maps import render, render_batch
from gazeprep.schema import Fixations, InputError

__all__ = ["Fixations", "InputError", "render", "render_batch"]
