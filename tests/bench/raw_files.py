"""Raw files to sequences, against the plain way: two passes of a line-by-line ``json.loads`` reader.

python -m tests.bench.raw_files                 # 5 million synthetic reviews, both sides by turns, written to bench.json
python -m tests.bench.raw_files --engines       # only reading four fields of the reviews: polars, duckdb, and the library's blocks

Each run is a process of its own, so that its peak of memory and its CPU time are its own. Both sides do the whole job:
filter, number, order in time, and find the items' titles.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.synthetic import write_raw

ROOT = Path(__file__).resolve().parents[2]
WHAT, COMMAND = "raw files to sequences", "python -m tests.bench.raw_files"
THRESHOLD = 5
FIELDS = {"reviewerID": "VARCHAR", "asin": "VARCHAR", "overall": "DOUBLE", "unixReviewTime": "BIGINT"}


# -- the sides ---------------------------------------------------------------------------------------------------------


def parse(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rb") as file:
        for line in file:
            yield json.loads(line)


def theirs(reviews: Path, metadata: Path, threshold: int = THRESHOLD) -> tuple[dict[int, list[int]], dict[int, str]]:
    """The plain way: count in a first pass, collect in a second. Users' items in time order, and titles by item."""
    users, items = Counter(), Counter()
    for record in parse(reviews):
        users[record["reviewerID"]] += 1
        items[record["asin"]] += 1
    histories, numbers, seen = defaultdict(list), {}, {}
    for record in parse(reviews):
        user, item = record["reviewerID"], record["asin"]
        if users[user] >= threshold and items[item] >= threshold:
            user, item = seen.setdefault(user, len(seen) + 1), numbers.setdefault(item, len(numbers) + 1)
            histories[user].append((record["unixReviewTime"], item))
    sequences = {}
    for user in range(1, len(seen) + 1):
        histories[user].sort(key=lambda event: event[0])
        sequences[user] = [item for _, item in histories[user]]
    titles = {}
    for record in parse(metadata):
        if record["asin"] in numbers:
            titles[numbers[record["asin"]]] = (record["title"], record["description"])
    return sequences, titles


def ours(reviews: Path, metadata: Path, threshold: int = THRESHOLD):
    from allmrec_lib.datasets import from_amazon

    return from_amazon(reviews, metadata, "synthetic", threshold=threshold)


def blocks(reviews: Path) -> int:
    """The library's reader alone."""
    from allmrec_lib.datasets import DataReport
    from allmrec_lib.datasets.amazon import read_reviews

    return len(read_reviews(reviews, DataReport())[0])


def polars(reviews: Path) -> int:
    """polars reads the whole file, streaming."""
    import polars as pl

    schema = dict(zip(FIELDS, (pl.String, pl.String, pl.Float64, pl.Int64), strict=True))
    return len(pl.scan_ndjson(reviews, schema=schema).collect(engine="streaming"))


def duckdb(reviews: Path) -> int:
    """duckdb reads the whole file into a table."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE r AS SELECT * FROM read_ndjson('{reviews}', columns={FIELDS}, ignore_errors=true)")
        return connection.execute("SELECT count(*) FROM r").fetchone()[0]


WHOLE: dict[str, Callable] = {"ours": ours, "theirs": theirs}
ENGINES: dict[str, Callable] = {
    "polars, whole file": polars,
    "duckdb, whole file": duckdb,
    "polars, by blocks (the library)": blocks,
}


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(side: str, paths: list[Path]) -> dict[str, float]:
    """Seconds of wall and CPU time and the peak memory of one run, in this process; imports are not counted."""
    if side in WHOLE:
        import allmrec_lib.datasets  # noqa: F401
    wall, cpu = time.perf_counter(), time.process_time()
    made = WHOLE[side](*paths) if side in WHOLE else ENGINES[side](paths[0])
    taken = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    users = len(made[0]) if side == "theirs" else made.n_users if side == "ours" else made
    return {**taken, "peak_mb": peak, "users": users}


def in_processes(sides: list[str], rounds: int, paths: list[Path]) -> dict[str, list[dict[str, float]]]:
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            command = [sys.executable, "-m", "tests.bench.raw_files", "--side", side, "--files", *map(str, paths)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"ALLMREC_QUIET": "1"})
            if done.returncode:
                raise SystemExit(f"{side} failed:\n{done.stderr}")
            runs[side].append(json.loads(done.stdout))
            shown = runs[side][-1]
            print(f"{side:<34} {shown['wall_s']:8.1f} s, CPU {shown['cpu_s']:7.1f} s, {shown['peak_mb']:6.0f} MB", flush=True)
    return runs


def middle(runs: list[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def row(runs: dict[str, list[dict[str, float]]], reviews: int) -> dict:
    """The comparison as a row of ``bench.json``: rates by wall time, and the ratio by CPU time beside it.

    ``load``: how many programs wanted a core on average; above the number of cores wall times are theirs too.
    """
    if len({run["users"] for side in runs.values() for run in side}) != 1:
        raise SystemExit("the two sides do not find the same users")
    rates = {side: reviews / middle(runs[side], "wall_s") for side in runs}
    pairs = [b["wall_s"] / a["wall_s"] for a, b in zip(runs["ours"], runs["theirs"], strict=True)]
    return {
        "what": WHAT, "ours": rates["ours"], "theirs": rates["theirs"], "ratio": rates["ours"] / rates["theirs"],
        "ratio_low": min(pairs), "ratio_high": max(pairs), "unit": "reviews/s", "llm": None,
        "command": COMMAND, "reviews": reviews, "rounds": len(pairs), "load": os.getloadavg()[2],
        "ratio_cpu": middle(runs["theirs"], "cpu_s") / middle(runs["ours"], "cpu_s"),
        "cpu_s": {side: middle(runs[side], "cpu_s") for side in runs},
        "peak_mb": {side: middle(runs[side], "peak_mb") for side in runs},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "data" / "raw" / "synthetic", help="where the files are kept (0.8 GB)"
    )
    parser.add_argument("--engines", action="store_true", help="compare engines at reading, nothing is recorded")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.files)))
        return 0
    folder = args.folder / str(args.reviews)
    paths = [folder / "Synthetic.json.gz", folder / "meta_Synthetic.json.gz"]
    if not all(path.exists() for path in paths):
        print(f"writing {args.reviews:,} reviews (once) ...", flush=True)
        partial = folder.with_suffix(".partial")
        write_raw(partial, args.reviews)
        partial.rename(folder)
    runs = in_processes(list(ENGINES if args.engines else WHOLE), args.rounds, paths)
    if not args.engines:
        from allmrec_lib.meter import cpu_name  # not at the top: torch would count in the sides' memory
        from tests.bench.common import merge

        made = row(runs, args.reviews) | {"device": f"{cpu_name()}, {os.cpu_count()} cores"}
        print(json.dumps(made, indent=1), f"\nwritten: {merge([made]).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
