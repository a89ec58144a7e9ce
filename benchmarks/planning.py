"""What each task does before its first shard and `finalize` after the last, for a release as large as MIMIC-CXR.

Writes the tables and empty files of a made-up release, of `--share` times 377,110 images in 227,835 studies, lists
it, plans it, writes the stats that tasks would leave and finalizes them. No picture is opened.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from timing import memory_mib

from gazeprep.build import PLAN, BuildConfig, inputs_of, jobs_of, plan
from gazeprep.cases import Sources
from gazeprep.jobs import STATS_KEYS, Job, recipe
from gazeprep.samples import index_row
from gazeprep.schema import CHEXPERT_LABELS
from gazeprep.shards import MEMBERS, canonical_json, json_bytes
from gazeprep.stores import WORK_FOLDER, LocalStore
from gazeprep.tasks import finalize

IMAGES, STUDIES, SUBJECTS = 377_110, 227_835, 65_379


def write_release(root: Path, share: float) -> None:
    """Write the tables and empty files of a release."""
    images, studies, subjects = (round(count * share) for count in (IMAGES, STUDIES, SUBJECTS))
    rows = []
    for number in range(images):
        study = number * studies // images
        subject = study * subjects // studies
        rows.append((f"{number:08x}-{number:08x}-{number:08x}-00000000-{number:08x}", 10_000_000 + subject, study))
    table = pd.DataFrame(rows, columns=["dicom_id", "subject_id", "study_id"])
    table["study_id"] += 50_000_000
    table.assign(ViewPosition="PA", Rows=3056, Columns=2544).to_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz")
    table.assign(split="train").to_csv(root / "mimic-cxr-2.0.0-split.csv.gz")
    labels = table.drop_duplicates("study_id")[["subject_id", "study_id"]].assign(**dict.fromkeys(CHEXPERT_LABELS, ""))
    labels.to_csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz")
    for dicom, subject, study in table.itertuples(index=False):
        folder = root / f"files/p{str(subject)[:2]}/p{subject}"
        if not (folder / f"s{study}").exists():
            (folder / f"s{study}").mkdir(parents=True)
            (folder / f"s{study}.txt").touch()
        (folder / f"s{study}" / f"{dicom}.dcm").touch()


def stats_of(job: Job, config: BuildConfig) -> dict[str, Any]:
    """Return stats as the job would leave them, of a tar that is not there."""
    lengths = {f"{member}_{what}": 1 for member in MEMBERS for what in ("offset", "length")}
    rows = [
        {"shard": job.shard, "key": case.key, "offset": 0, "length": 1, **lengths, **index_row(case, None)}
        for case in job.cases
    ]
    pictures = {case.key: "0" * 32 for case in job.cases}
    known = {"rows": rows, "rejected": [], "pictures": pictures, "empty": {}, "size": 0}
    known["recipe"] = recipe(job, config.sample)
    return {name: known.get(name, "0" * 64) for name in STATS_KEYS}


def timed(what: str, call: Callable[[], Any]) -> Any:
    """Call, and print the seconds that it took, of them on the core, and the memory held after it."""
    start, on_core = time.perf_counter(), time.process_time()
    result = call()
    taken, on_core = time.perf_counter() - start, time.process_time() - on_core
    print(f"  {what:40}{taken:7.1f} s, on the core {on_core:6.1f} s   {memory_mib('VmRSS'):6.0f} MiB")
    return result


def measure(root: Path, out: LocalStore, shard_samples: int) -> None:
    """Plan a release as a task does, leave the stats of all its shards, and finalize them."""
    config = BuildConfig(out.root, Sources(mimic=root), shard_samples=shard_samples)
    inputs = timed("list the inputs", lambda: inputs_of(config))
    jobs = timed("cut them into jobs", lambda: jobs_of(inputs, config.shard_samples))
    whole = timed("plan: a digest of each shard's inputs", lambda: plan(config, inputs, jobs))
    out.begin()
    written = {**vars(whole), "shards": [vars(shard) for shard in whole.shards], "task_count": 1}
    out.write(PLAN, canonical_json(written).encode())
    for job in jobs:
        out.write(f"{WORK_FOLDER}/{job.name}.json", json_bytes(stats_of(job, config)))
        (out.root / job.shard).parent.mkdir(exist_ok=True)
        (out.root / job.shard).touch()
    print(f"  memory of a process that planned: at most {memory_mib('VmHWM'):.0f} MiB")


def main() -> None:
    """Measure planning and finalizing, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.1, help="of MIMIC-CXR's images")
    parser.add_argument("--shard-samples", type=int, default=512)
    options = parser.parse_args()
    print(
        f"{options.share:g} of MIMIC-CXR's images, one core; a process holds {memory_mib('VmRSS'):.0f} MiB at its start"
    )
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        root, out = Path(folder) / "mimic", LocalStore(Path(folder) / "out")
        root.mkdir()
        write_release(root, options.share)
        for step, given in ((measure, (root, out, options.shard_samples)), (measure_finalize, (out,))):
            process = context.Process(target=step, args=given)
            process.start()
            process.join()


def measure_finalize(out: LocalStore) -> None:
    """Finalize what `measure` left."""
    sizes = [path.stat().st_size for path in (out.root / WORK_FOLDER).glob("train-*.json")]
    timed("finalize: stats -> index and manifest", lambda: finalize(out.root))
    index = (out.root / "index.parquet").stat().st_size
    print(f"  {len(sizes)} shards, {sum(sizes) / 2**20:.0f} MiB of stats, index {index / 2**20:.1f} MiB")
    print(f"  memory of the process that finalized: at most {memory_mib('VmHWM'):.0f} MiB")


if __name__ == "__main__":
    main()
