"""What a language model is told of an image beside it: diseases that the encoder predicts, a similar training study.

Found once for a run, by all its processes, and kept beside it by key; no text is kept.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from cogaze.checkpoint import write_whole
from cogaze.data.chat import Hint, PromptConfig
from cogaze.data.collate import Batch, Collate
from cogaze.data.dataset import REBUILD, CorruptSampleError, SampleTable, ShardDataset, read_folder
from cogaze.data.plan import PlanItem
from cogaze.data.targets import Targets
from cogaze.evaluate.processes import Process, Rows, batches_of, rows_in_order
from cogaze.evaluate.similarity import Embedded, Similarities, Similarity
from cogaze.models.cogaze import CoGazeModel
from cogaze.models.report import LATENT_FIELDS
from gazeprep.schema import CHEXPERT_LABELS

IntArray = npt.NDArray[np.int64]
FILE = "hints.parquet"
ORIGIN = b"cogaze"  # of the parquet file's metadata
BATCH = 32  # images
MEMORY_BYTES = 2**28  # of a block of similarities with what is computed from it
BYTES_A_CELL = 10  # a similarity, and who is left out


@dataclass(frozen=True)
class Found:
    """A similar training sample's key, "" for none, and the predicted diseases by their places in CHEXPERT_LABELS."""

    similar: str
    diseases: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Whose:
    """Numbers of subject and study of N samples, equal where these are."""

    subject: IntArray
    study: IntArray

    def __getitem__(self, rows: IntArray) -> "Whose":
        """Return those of some samples."""
        return Whose(self.subject[rows], self.study[rows])


@dataclass(frozen=True, eq=False)
class Looker:
    """What looks at samples: an encoder on its device, the dataset of a table of samples, what makes batches of them.

    sha256: of the encoder's weights. dataset: gives samples that cannot be read as fillers; unless skip_corrupt, which
    has them neither found nor told anything, they end the search.
    """

    model: CoGazeModel
    sha256: str
    dataset: Callable[[SampleTable], ShardDataset]
    collate: Collate
    workers: int = 0
    skip_corrupt: bool = False


def hints(
    looker: Looker,
    root: str,
    asked: Sequence[SampleTable],
    training: Targets,
    prompt: PromptConfig,
    kept: Sequence[Path],
) -> dict[str, Hint]:
    """Return the hints of every sample of some tables, by key, with the report of the similar one.

    training: whose reports may be told. kept: folders that may have what was found before of the same encoder, samples
    and prompt; what is found now goes into the last.
    """
    origin = _origin(looker, root, training, prompt)
    keys = {table.name(row) for table in asked for row in range(len(table))}
    before = (read_found(folder / FILE, origin) for folder in kept)
    found = next((one for one in before if keys <= one.keys()), None)
    if found is None:
        found = _find(looker, root, asked, training, prompt)
        if Process.current().is_main:
            write_found(kept[-1] / FILE, found, origin)
    return {key: _hint(found[key], training.text) for key in keys}


def _hint(found: Found, text: Mapping[str, str]) -> Hint:
    names = tuple(CHEXPERT_LABELS[place] for place in found.diseases)
    return Hint(text[found.similar] if found.similar else "", names)


def _origin(looker: Looker, root: str, training: Targets, prompt: PromptConfig) -> dict[str, Any]:
    """Return what is found depends on."""
    config = json.dumps(asdict(looker.collate.config))
    return {
        "encoder": looker.sha256,
        "collate": json.loads(config),
        "index": read_folder(root).manifest["tables"]["index.parquet"]["sha256"],
        "training": hashlib.blake2b(training.table.key.tobytes(), digest_size=8).hexdigest(),
        "similar_by": prompt.similar_by,
        "disease_threshold": prompt.disease_threshold,
    }


# --- keeping them


def read_found(path: Path, origin: Mapping[str, Any]) -> dict[str, Found]:
    """Read what was found before of the same origin, by key; empty where there is none."""
    if not path.exists():
        return {}
    table = pq.read_table(path)
    if json.loads((table.schema.metadata or {}).get(ORIGIN, b"{}")) != origin:
        return {}
    return {row["key"]: Found(row["similar"], tuple(row["diseases"])) for row in table.to_pylist()}


def write_found(path: Path, found: Mapping[str, Found], origin: Mapping[str, Any]) -> None:
    """Write what was found under a name that appears only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "key": pa.array(list(found), pa.string()),
            "similar": pa.array([one.similar for one in found.values()], pa.string()),
            "diseases": pa.array([list(one.diseases) for one in found.values()], pa.list_(pa.int8())),
        }
    )
    data = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({ORIGIN: json.dumps(origin)}), data)
    write_whole(path, data.getvalue().to_pybytes())


# --- finding them


def _find(
    looker: Looker, root: str, asked: Sequence[SampleTable], training: Targets, prompt: PromptConfig
) -> dict[str, Found]:
    from cogaze.log import say  # which knows a whole run, and that knows this

    samples = sum(len(table) for table in asked)
    if Process.current().is_main:
        say(f"similar cases and diseases of {samples} samples are sought among {len(training.table)} training samples")
    people, candidates = _people(root), looked_at(looker, training.table)
    known = np.flatnonzero(candidates["valid"])
    shown, shown_of = Embedded.of(candidates[prompt.similar_by][known]), whose(people, training.table)[known]
    found: dict[str, Found] = {}
    for table in asked:
        rows = _among(candidates, training.table, table) or looked_at(looker, table)
        places = nearest(Similarity(Embedded.of(rows["image"]), shown), whose(people, table), shown_of)
        likely = rows["logits"] > math.log(prompt.disease_threshold / (1 - prompt.disease_threshold))
        for row in np.flatnonzero(rows["valid"]).tolist():
            similar = training.table.name(known[places[row]]) if places[row] >= 0 else ""
            found[table.name(row)] = Found(similar, tuple(np.flatnonzero(likely[row]).tolist()))
        found |= {table.name(row): Found("", ()) for row in np.flatnonzero(~rows["valid"]).tolist()}
    return found


def _among(rows: Rows, of: SampleTable, table: SampleTable) -> Rows | None:
    """Return the rows of a table's samples if they are all among those of another's."""
    place = {key: row for row, key in enumerate(of.key.tolist())}
    places = [place.get(key, -1) for key in table.key.tolist()]
    return None if min(places) < 0 else {name: values[places] for name, values in rows.items()}


def _people(root: str) -> pd.DataFrame:
    """Return numbers of subject and study by key; a table's are its own, REFLACX's and EGD-CXR's are MIMIC's."""
    rows = read_folder(root).index
    own = rows["dataset"].where(rows["dataset"].str.startswith("table-"), "")
    numbers = {name: pd.factorize(own + "\0" + rows[name])[0] for name in ("subject", "study")}
    unknown = -1 - np.arange(len(rows))
    return pd.DataFrame(
        {name: np.where(rows[name] == "", unknown, number) for name, number in numbers.items()},
        index=rows.index if rows.index.name == "key" else rows["key"],
    )


def whose(people: pd.DataFrame, table: SampleTable) -> Whose:
    """Return whose samples a table has."""
    rows = people.loc[[table.name(row) for row in range(len(table))]]
    return Whose(rows["subject"].to_numpy(np.int64), rows["study"].to_numpy(np.int64))


def nearest(similarity: Similarities, query: Whose, candidate: Whose, *, memory_bytes: int = MEMORY_BYTES) -> IntArray:
    """Return for each query (Q,) the most similar candidate of another subject and study, the first of equal ones.

    -1 where there is none. Blocks of queries that take about memory_bytes are compared with all candidates, by several
    processes if there are some.
    """
    queries, candidates = similarity.shape

    def encode(batches: Sequence[range]) -> Iterator[dict[str, Tensor]]:
        for batch in batches:
            rows = slice(batch.start, batch.stop)
            block = similarity.rows(batch.start, batch.stop)
            own = query.subject[rows, None] == candidate.subject
            own |= query.study[rows, None] == candidate.study
            block[own] = -np.inf
            best = block.argmax(axis=1)
            none = np.isneginf(np.take_along_axis(block, best[:, None], axis=1)[:, 0])
            yield {"place": torch.from_numpy(np.where(none, -1, best))}

    size = max(1, memory_bytes // (BYTES_A_CELL * candidates))
    return np.asarray(rows_in_order(batches_of(queries, size), encode)["place"], dtype=np.int64)


@torch.no_grad()
def looked_at(looker: Looker, table: SampleTable) -> Rows:
    """Return image and report (N, D) of length 1, logits (N, 14) of diseases and valid (N,) of a table's samples.

    An image is seen in the light of its context, as in training.
    """
    dataset = looker.dataset(table)
    device = next(looker.model.parameters()).device

    def encode(batches: Sequence[range]) -> Iterator[dict[str, Tensor]]:
        items = [[PlanItem(row, True, False, 0) for row in batch] for batch in batches]
        loader = DataLoader(
            dataset,
            batch_sampler=items,
            collate_fn=looker.collate,
            num_workers=looker.workers,
            generator=torch.Generator(),  # an iterator draws a seed; not from the run's own numbers
        )
        for batch in loader:
            _refuse_faults(looker, batch)
            yield _seen(looker.model, batch.to(device))

    return rows_in_order(batches_of(len(table), BATCH), encode)


def _refuse_faults(looker: Looker, batch: Batch) -> None:
    faults = [fault for fault in batch.faults if fault]
    if faults and not looker.skip_corrupt:
        raise CorruptSampleError(f"{faults[0]}; {REBUILD}, or skip such samples (data.skip_corrupt)")


def _seen(model: CoGazeModel, batch: Batch) -> dict[str, Tensor]:
    _, latents = model.look(**batch.model_inputs(LATENT_FIELDS))
    pooled = latents.visual.mean(dim=1)
    report = model.encode_text(batch.report_input_ids, batch.report_mask).pooled
    return {
        "image": F.normalize(pooled.float(), dim=-1),
        "report": F.normalize(report.float(), dim=-1),
        "logits": model.vision_head(pooled).float(),
        "valid": batch.valid,
    }
