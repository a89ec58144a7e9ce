"""What a command says that has to stop: one line without folders, so that a log tells nobody where data lie."""

import torch
from safetensors import SafetensorError

from cogaze.evaluate.processes import OtherProcessError
from cogaze.evaluate.results import FOLDERS
from cogaze.step import NonFiniteLossError
from gazeprep.shards import unusable

# What users can mend.
STOPS = (ValueError, OSError, SafetensorError, NonFiniteLossError, OtherProcessError, torch.OutOfMemoryError)


def one_line(error: Exception) -> str:
    """Say what an error says, of each path its last name; of one that a disk raised, what the disk says."""
    text = str(error)
    if isinstance(error, SafetensorError):
        text = f"a model's weights cannot be read ({text}); copy or train the model again"
    elif isinstance(error, OSError) and error.errno is not None:
        text = unusable(error)
    elif isinstance(error, OSError):  # transformers' own, of what a folder lacks
        text = f"{text.strip().rstrip('.')}; give the folder of a model that a run exported"
    return FOLDERS.sub("", " ".join(text.split()))
