"""Every reader fed damaged and hostile files: `make fuzz INPUTS=120000`.

Valid small files are changed at random: bits, bytes, cells, pieces moved, cut or repeated; each change is a function of
the seed, the reader and the number of the input. A reader may return what it read, or raise the library's own error;
anything else, a crash, more than ten seconds or too much memory is a finding, told by the numbers that make it again.
"""

import argparse
import gzip
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz_targets import Target, targets

import gazeprep
from gazeprep.schema import InputError

LIBRARY = str(Path(gazeprep.__file__).parent)
SLOW_S = 10
MEMORY_BYTES = 6 * 2**30  # of address space, of which the libraries themselves take one
NUMBER = re.compile(rb"-?\d+(\.\d+)?")
BYTES = (b"\0", b"\xff", b"\x80", b"\n", b",", b'"', b"\r", b"\xef\xbb\xbf", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff")
CELLS = (
    *(
        b"",
        b"nan",
        b"inf",
        b"-inf",
        b"-1",
        b"0",
        b"1e308",
        b"-1e308",
        b"1e-308",
        b"9" * 400,
        b"1e999",
        b"0x10",
        b"True",
    ),
    *(
        b'"',
        b'""',
        b"'",
        b",",
        b"\n",
        b"\r\n",
        b"\t",
        b"\0",
        b"../../etc/passwd",
        b"/etc/passwd",
        b"C:\\x.png",
        b"\xe9",
    ),
    *("\u0661".encode(), "\u202e".encode(), b"[" * 3000, b"{}", b"null", b"1" + b"0" * 30, b"a" * 5000),
)


@dataclass(frozen=True)
class Finding:
    """An input that did what no input may."""

    target: str
    number: int
    what: str


# --- changes


def mutated(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One of the seeds with one to six changes."""
    data = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        data = rng.choice(CHANGES)(data, rng, seeds)
    return data


def _flip(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 4)) if data else 0):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at, new = _place(data, rng), rng.choice((*BYTES, rng.randbytes(rng.randrange(1, 9))))
    return data[:at] + new + data[at + len(new) :]


def _insert(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.choice((*BYTES, *CELLS)) + data[at:]


def _cut_out(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + rng.choice((1, 2, 4, 20, 200)) :]


def _cut_short(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    return data[: _place(data, rng)]


def _repeat(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at, length = _place(data, rng), rng.choice((1, 8, 64, 500))
    return data[:at] + data[at : at + length] * rng.choice((2, 3, 50)) + data[at + length :]


def _splice(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    other = rng.choice(seeds)
    return data[: _place(data, rng)] + other[_place(other, rng) :]


def _number(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """Put something odd in the place of a number written as text."""
    found = list(NUMBER.finditer(data[:20_000]))
    if not found:
        return _overwrite(data, rng, ())
    one = rng.choice(found)
    return data[: one.start()] + rng.choice(CELLS) + data[one.end() :]


def _cell(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """Change, drop, double or move a cell of a line of a table."""
    lines = data.split(b"\n")
    row = rng.randrange(len(lines))
    cells = lines[row].split(b",")
    at = rng.randrange(len(cells))
    change = rng.randrange(5)
    if change == 0:
        cells[at] = rng.choice(CELLS)
    elif change == 1:
        del cells[at]
    elif change == 2:
        cells.insert(at, cells[at])
    elif change == 3:
        rng.shuffle(cells)
    else:
        lines.insert(row, lines[rng.randrange(len(lines))])
    lines[row] = b",".join(cells) if change < 4 else lines[row]
    return b"\n".join(lines)


CHANGES = (_flip, _flip, _overwrite, _insert, _cut_out, _cut_short, _repeat, _splice, _number, _cell)


def _place(data: bytes, rng: random.Random) -> int:
    """Anywhere, but more often near the begin, where headers stand."""
    return rng.randrange(rng.choice((64, 512, len(data), len(data))) + 1) % (len(data) or 1)


# --- inputs


def input_of(target: Target, number: int, seed: int = 0) -> bytes:
    """The bytes of an input; a gzipped one is changed before or after it was packed."""
    rng = random.Random(f"{seed} {target.name} {number}")
    if not target.packed:
        return mutated(target.seeds, rng)
    if rng.random() < 0.8:
        return gzip.compress(mutated(target.seeds, rng), 1, mtime=0)
    return mutated([gzip.compress(one, 1, mtime=0) for one in target.seeds], rng)


def outcome(target: Target, data: bytes) -> str:
    """What a reader makes of an input: "read", the reason of its error, or a finding, which begins with !."""
    try:
        target.read(data)
    except InputError as error:
        return error.reason
    except ValueError as error:  # shards raise plain ones, on purpose
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = type(error) is ValueError and last.filename.startswith(LIBRARY) and target.plain_errors
        return "refused" if ours else _finding(error)
    except BaseException as error:  # whatever escapes is what is looked for
        if isinstance(error, KeyboardInterrupt):
            raise
        return _finding(error)
    return "read"


def _finding(error: BaseException) -> str:
    frames = [f"{Path(one.filename).name}:{one.lineno}" for one in traceback.extract_tb(error.__traceback__)]
    return f"! {type(error).__name__}: {str(error)[:120]} at {' '.join(frames[-4:])}"


def dealt(readers: Sequence[Target], inputs: int) -> Iterator[tuple[Target, int]]:
    """Deal inputs out to the readers in turn, so many to each as its share: which reader, and which of its inputs."""
    turn = [target for target in readers for _ in range(target.share)]
    given: Counter[str] = Counter()
    for i in range(inputs):
        target = turn[i % len(turn)]
        yield target, given[target.name]
        given[target.name] += 1


# --- a recorded run: a child reads, so that a crash costs one input and not the run


def child(inputs: int, first: int, seed: int, out: Path) -> None:
    """Read inputs from number `first` on, and write what they did; the last line begun names the one that crashed."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _too_slow)
    with tempfile.TemporaryDirectory() as folder, out.open("a", buffering=1) as log:
        readers, highest = list(targets(Path(folder))), 0
        for i, (reader, number) in enumerate(dealt(readers, inputs)):
            if i < first:
                continue
            log.write(f"{i}\t{reader.name}\t{number}\t")
            log.flush()  # a crash leaves this begun line
            data, began = input_of(reader, number, seed), time.monotonic()
            signal.alarm(SLOW_S)
            what = outcome(reader, data)
            signal.alarm(0)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            log.write(f"{what}\t{time.monotonic() - began:.3f}\t{peak if peak > highest else 0}\n")
            highest = max(highest, peak)


def _too_slow(*_: Any) -> None:
    raise TimeoutError(f"more than {SLOW_S} s")


def run(inputs: int, seed: int, out: Path) -> int:
    """Read all inputs in children, one after another, and print the table of what they did; 1 where one was wrong."""
    out.unlink(missing_ok=True)
    first, findings = 0, []
    while first < inputs:
        command = [sys.executable, __file__, "--child", str(first), "--inputs", str(inputs), "--seed", str(seed)]
        done = subprocess.run(
            [*command, "--out", str(out)], stderr=subprocess.PIPE, check=False, env=os.environ | {"RUST_BACKTRACE": "0"}
        )
        if done.returncode == 0:
            break
        last = out.read_text().split("\n")[-1] if out.exists() else ""
        i, name, number = (*last.split("\t"), "", "")[:3]
        if not number:
            sys.exit(f"the reading process ended: {done.stderr.decode()[-2000:]}")
        findings.append(Finding(name, int(number), f"! crash with exit code {done.returncode}"))
        with out.open("a") as log:
            log.write(f"{findings[-1].what}\t0\t0\n")
        first = int(i) + 1
    return report(out)


def report(out: Path) -> int:
    """Print counts of outcomes by reader, the slowest and the peak, and every finding."""
    rows = [line.split("\t") for line in out.read_text().splitlines()]
    counts = Counter((row[1], "finding" if row[3].startswith("!") else row[3]) for row in rows)
    told = []
    for name in dict.fromkeys(row[1] for row in rows):
        own = {what: count for (target, what), count in sorted(counts.items()) if target == name}
        slowest = max(float(row[4]) for row in rows if row[1] == name)
        told.append(f"{name}: {sum(own.values())} inputs, {json.dumps(own)}, slowest {slowest:.2f} s")
    told.append(f"{len(rows)} inputs, peak memory {max(int(row[5]) for row in rows)} MiB")
    findings = [row for row in rows if row[3].startswith("!")]
    told += [" ".join(row[1:4]) for row in findings]
    sys.stdout.write("\n".join([*told, f"{len(findings)} findings", ""]))
    return 1 if findings else 0


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/fuzz.tsv"))
    parser.add_argument("--child", type=int, default=None, help="used by the program itself")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.child is not None:
        child(options.inputs, options.child, options.seed, options.out)
        return 0
    return run(options.inputs, options.seed, options.out)


if __name__ == "__main__":
    sys.exit(main())
