"""Big files of JSON lines, plain or gzipped, as tables: multi-threaded, in bounded memory, no bad line unseen.

A thread reads and decompresses blocks of whole lines while polars parses those before, on all cores. A block in which
polars meets an error, or a value that is missing or odd, is read again line by line: that says which line is bad and why.
For a million gzipped reviews polars took 2.4 s of CPU and duckdb 2.4 s (``tests/bench/raw_files.py --engines``); polars stays,
since it parses blocks that are handed to it, so that line numbers, lines of any length and the progress are in our hands.
msgspec, told the wanted fields, took a third less CPU than polars and as long by the clock: it holds the interpreter's lock,
and neither reads beside the thread that decompresses nor on a second core. pyarrow took a third more.
"""

from __future__ import annotations

import ast
import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from isal import igzip, isal_zlib
from tqdm import tqdm

from ..config import quiet
from .base import DataError, DataReport

T = TypeVar("T")
BLOCK = 8 << 20  # bytes: memory does not grow with the file
MAX_LINE = 8 << 20  # bytes: a longer line is no record
SHOWN = 10
DAMAGED = (EOFError, igzip.BadGzipFile, zlib.error, isal_zlib.error)


class BadLine(ValueError):
    """What is wrong with a line, as it follows on "line 7 "."""


@dataclass(frozen=True)
class Fields:
    """What to read of every record.

    ``schema``: names and types of the wanted fields. ``odd``: which rows polars may have read too kindly.
    ``row(record)``: the same values from a parsed record; raises :class:`BadLine`. Where no row is odd both agree.
    """

    schema: dict[str, Any]
    odd: pl.Expr
    row: Callable[[dict], tuple]


@dataclass(frozen=True)
class Block:
    """Whole lines: the number of the first, how many, and whether one of them is over :data:`MAX_LINE`."""

    first: int
    lines: int
    data: bytes
    long: bool


class JsonLines:
    """The records of a file as tables, a block at a time; what is wrong is counted in the report at the end.

    ``strict``: the first bad line raises :class:`DataError` instead. A file that is damaged or ends early always raises.
    """

    def __init__(self, path: Path, report: DataReport, strict: bool = False):
        self.path, self.report, self.strict = path, report, strict
        self.bad, self.shown = 0, []

    def head(self) -> dict:
        """The first record of the file that can be read; empty when the first block has none."""
        block = next(self._blocks(), None)
        for line in block.data.split(b"\n") if block else ():
            try:
                return parse(line)
            except BadLine:
                continue
        return {}

    def tables(self, fields: Fields) -> Iterator[pl.DataFrame]:
        """The wanted fields of all good records, in the file's order."""
        with tqdm(desc=self.path.name, total=self.path.stat().st_size, unit="B", unit_scale=True, disable=quiet()) as bar:
            for table, bad in _ahead(self._blocks(bar), lambda block: self._table(block, fields)):
                for number, error in bad:
                    self._reject(number, error)
                yield table
        why = "; ".join(self.shown) + ("; ..." if self.bad > SHOWN else "")
        self.report.add(f"bad lines in {self.path.name}", self.bad, f"skipped: {why}" if self.bad else "")

    def _blocks(self, bar: tqdm | None = None) -> Iterator[Block]:
        number = 1
        try:
            with open(self.path, "rb") as raw:
                file = igzip.open(raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
                while data := file.read(BLOCK):
                    begun = len(data) - data.rfind(b"\n") - 1  # bytes of the last line, which goes on after the block
                    end = file.readline(MAX_LINE) if begun else b""
                    long = begun + len(end) > MAX_LINE
                    data += end
                    while long and end and not end.endswith(b"\n"):
                        end = file.readline(MAX_LINE)  # skipped: more of it would still be no record
                    lines = data.count(b"\n") + (not data.endswith(b"\n"))
                    if bar is not None:
                        bar.update(raw.tell() - bar.n)
                    yield Block(number, lines, data, long)
                    number += lines
        except DAMAGED as error:
            where = f"after line {_whole_lines(self.path)}"
            raise DataError(f"{self.path.name} is damaged or ends early, {where} ({error}); fetch it again") from error

    def _table(self, block: Block, fields: Fields) -> tuple[pl.DataFrame, list[tuple[int, BadLine]]]:
        """The block's good records, from polars unless a line of it needs a closer look; and its bad lines by number."""
        if not block.long:
            try:
                table = pl.read_ndjson(block.data, schema=fields.schema)
                if len(table) == block.lines and not table.select(fields.odd.any()).item():
                    return table, []
            except pl.exceptions.PolarsError:
                pass  # the closer look says what is wrong
        return self._line_by_line(block, fields)

    def _line_by_line(self, block: Block, fields: Fields) -> tuple[pl.DataFrame, list[tuple[int, BadLine]]]:
        rows, bad = [], []
        for number, line in enumerate(block.data.removesuffix(b"\n").split(b"\n"), block.first):
            try:
                rows.append(fields.row(parse(line)))
            except BadLine as error:
                bad.append((number, error))
        return pl.DataFrame(rows, schema=fields.schema, orient="row"), bad

    def _reject(self, number: int, error: BadLine) -> None:
        if self.strict:
            raise DataError(f"{self.path.name}, line {number} {error}; mend or delete the line, or read without strict")
        self.bad += 1
        if self.bad <= SHOWN:
            self.shown.append(f"line {number} {error}")


def parse(line: bytes) -> dict:
    """The record in a line: JSON, or the Python literal that metadata of 2014 are."""
    if len(line) > MAX_LINE:
        raise BadLine(f"is over {MAX_LINE >> 20} MB long")
    try:
        record = ast.literal_eval(line.decode()) if line.startswith(b"{'") else json.loads(line)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last three: absurdly deep or odd literals
        raise BadLine("holds no whole JSON object" if line.strip() else "is empty") from None
    if not isinstance(record, dict):
        raise BadLine("holds no JSON object")
    return record


def _whole_lines(path: Path) -> int:
    """How many lines of a damaged gzip file can be read."""
    lines = 0
    try:
        with igzip.open(path) as file:
            while data := file.read1(1 << 16):
                lines += data.count(b"\n")
    except DAMAGED:
        return lines
    return lines


def _ahead(blocks: Iterator[Block], work: Callable[[Block], T]) -> Iterator[T]:
    """``work`` of every block, in their order: a thread reads the next blocks while others work on those before."""
    workers = min(os.cpu_count() or 1, 4)  # polars uses all cores for a block too; more blocks at once would only take memory
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(workers) as pool:
        coming: deque[Future[T]] = deque()
        following = reader.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = reader.submit(next, blocks, None)
            coming.append(pool.submit(work, block))
            if len(coming) > workers:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
