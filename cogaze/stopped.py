"""What a command says that has to stop: one line without folders, so that a log tells nobody where data lie."""

import torch

from cogaze.evaluate.processes import OtherProcessError
from cogaze.evaluate.results import FOLDERS
from cogaze.step import NonFiniteLossError
from gazeprep.shards import unusable

STOPS = (ValueError, OSError, NonFiniteLossError, OtherProcessError, torch.OutOfMemoryError)  # that users can mend


def one_line(error: Exception) -> str:
    """Say what an error says, of each path its last name; of one that a disk raised, what the disk says."""
    text = unusable(error) if isinstance(error, OSError) else str(error)
    return FOLDERS.sub("", " ".join(text.split()))
