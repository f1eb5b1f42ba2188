"""Raw Amazon files: downloads that go on and try mirrors, bad lines, three editions, and the command that shows it all."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from allmrec_lib import datasets
from allmrec_lib.__main__ import main as library
from allmrec_lib.datasets import DataError, DataReport, amazon, catalogue, download, jsonlines
from allmrec_lib.datasets.__main__ import main
from allmrec_lib.datasets.base import NO_TITLE

ROOT = Path(__file__).resolve().parent.parent
CONTENT = bytes(range(256)) * 3000
HASH = hashlib.sha256(CONTENT).hexdigest()


# -- a server on this machine ------------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files`` by path. ``breaks`` closes a connection after so many bytes, once; ``asked`` holds (path, Range)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.breaks: int | None = None
        self.ranges, self.etag = True, '"v1"'
        self.asked: list[tuple[str, str | None]] = []

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted, server = self.headers.get("Range"), self.server
        server.asked.append((self.path, wanted))
        if self.path[1:] not in server.files:
            return self.send_error(404)
        data, start = server.files[self.path[1:]], 0
        if wanted and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        stop, server.breaks = server.breaks, None
        self.wfile.write(data[start : len(data) if stop is None else start + stop])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("ALLMREC_QUIET", "1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_download_goes_on_where_it_broke_off(server: Server, tmp_path: Path) -> None:
    server.files["x.bin"], server.breaks = CONTENT, 500_000
    with pytest.raises(OSError):
        download.fetch(server.url("x.bin"), HASH, tmp_path)
    (part,) = tmp_path.glob("*.part")
    have = part.stat().st_size
    assert 0 < have <= 500_000 and not (tmp_path / "x.bin").exists()
    path = download.fetch(server.url("x.bin"), HASH, tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [("/x.bin", None), ("/x.bin", f"bytes={have}-")]
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]
    download.fetch(server.url("x.bin"), HASH, tmp_path)
    assert len(server.asked) == 2  # what is here and has the hash is not asked for


@pytest.mark.parametrize("change", ["another version", "no ranges"])
def test_a_download_starts_anew_where_it_cannot_go_on(server: Server, tmp_path: Path, change: str) -> None:
    server.files["x.bin"], server.breaks = b"old" * 200_000, 300_000
    with pytest.raises(OSError):
        download.fetch(server.url("x.bin"), None, tmp_path)
    server.files["x.bin"] = CONTENT
    server.etag, server.ranges = ('"v2"', True) if change == "another version" else (server.etag, False)
    assert download.fetch(server.url("x.bin"), None, tmp_path).read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_nothing_stays(server: Server, tmp_path: Path) -> None:
    server.files["x.bin"] = b"a login page"
    with pytest.raises(ValueError, match="does not match the known hash"):
        download.fetch(server.url("x.bin"), HASH, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_mirrors_are_tried_in_order(server: Server, tmp_path: Path) -> None:
    server.files |= {"b/x.bin": b"a login page", "c/x.bin": CONTENT}
    dead = "http://127.0.0.1:9/x.bin"  # the port "discard": nobody listens
    urls = [dead, *(server.url(f"{folder}/x.bin") for folder in "abcd")]
    assert download.fetch_first(urls, {"x.bin": HASH}, tmp_path).read_bytes() == CONTENT
    assert [path for path, _ in server.asked] == ["/a/x.bin", "/b/x.bin", "/c/x.bin"]
    (tmp_path / "x.bin").unlink()
    with pytest.raises(DataError) as failed:
        download.fetch_first(urls[:3], {"x.bin": HASH}, tmp_path)
    lines = str(failed.value).split("\n")[1:]
    assert [line.split(": ")[-1][:40].split(" (")[0] for line in lines[:2]] == ["cannot be reached", "status 404"]
    assert "does not match the known hash" in lines[2]


def test_a_page_is_no_file_where_no_hash_is_known(server: Server, tmp_path: Path) -> None:
    whole = gzip.compress(b'{"reviewerID": "A"}')
    server.files |= {"a/x.json.gz": b"\n<!DOCTYPE html>", "b/x.json.gz": whole, "a/x.json": b"<html>", "b/x.json": b' {"a": 1}'}
    for name, content in (("x.json.gz", whole), ("x.json", b' {"a": 1}')):
        path = download.fetch_first([server.url(f"{folder}/{name}") for folder in "ab"], {}, tmp_path)
        assert path.read_bytes() == content
        path.unlink()
    with pytest.raises(DataError, match="sent as x.json.gz begins with .*a login page"):
        download.fetch_first([server.url("a/x.json.gz")], {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- where files are found ---------------------------------------------------------------------------------------------

REVIEWS = [
    {"reviewerID": f"U{u}", "asin": f"I{i}", "overall": 5.0, "unixReviewTime": 10 * u + i} for u in range(6) for i in range(5)
]
META = [{"asin": f"I{i}", "title": f"Thing {i}", "description": ["It is."], "category": ["All", "Things"]} for i in range(5)]


def need(folder: str) -> None:
    """Skip, aloud, where the shared files are not on this machine."""
    if not (Path(os.environ.get("ALLMREC_DATA", "no such folder")) / folder).exists():
        pytest.skip(f"ALLMREC_DATA does not hold {folder}/")


def lines(records: list) -> bytes:
    return b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in records)


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without any data but the paper's tables."""
    (tmp_path / "home" / "data").mkdir(parents=True)
    (tmp_path / "home" / "data" / "paper").symlink_to(ROOT / "data" / "paper")
    monkeypatch.setenv("ALLMREC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ALLMREC_QUIET", "1")
    monkeypatch.delenv("ALLMREC_DATA", raising=False)
    return tmp_path / "home"


def test_the_command_downloads_reads_and_shows(server: Server, empty_home: Path, monkeypatch, capsys) -> None:
    server.files["categoryFiles/Toys_and_Games.json.gz"] = gzip.compress(lines(REVIEWS))
    server.files["metaFiles2/meta_Toys_and_Games.json.gz"] = gzip.compress(lines(META[:4]))
    monkeypatch.setitem(catalogue.MIRRORS, 2018, ("http://127.0.0.1:9/{file}.json.gz",))
    assert library(["data", "toys", "--mirror", server.url("{kind}/{file}.json.gz")]) == 0
    out = capsys.readouterr().out
    assert "users                   6.00   Table 2:     30,831.00   -30,825.00" in out
    assert "80.0% have a title, 80.0% a description" in out
    assert "1  items without metadata" in out
    asked = len(server.asked)
    assert library(["data", "toys"]) == 0 and len(server.asked) == asked  # all is here now
    assert datasets.load("toys").n_users == 6


def test_hashes_are_those_of_their_edition(monkeypatch, tmp_path):
    """The metadata of 2014 and of 2018 have one name."""
    held = {}
    monkeypatch.setattr(catalogue, "fetch_first", lambda urls, hashes, folder: held.setdefault(urls[0].split("/")[-1], []).append(hashes))
    for name in ("video_games", "video_games_2014"):
        catalogue.fetch_raw(tmp_path, name)
    assert held["meta_Video_Games.json.gz"] == [catalogue.HASHES, {}]


def test_beauty_is_fetched_raw_where_the_authors_files_are_not(server: Server, empty_home: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(catalogue, "HASHES", {})
    monkeypatch.setitem(catalogue.MIRRORS, 2018, (server.url("{kind}/{file}.json.gz"),))
    assert library(["data", "beauty"]) == 1
    assert "status 404" in capsys.readouterr().err
    server.files["categoryFiles/Luxury_Beauty.json.gz"] = gzip.compress(lines(REVIEWS))
    server.files["metaFiles2/meta_Luxury_Beauty.json.gz"] = gzip.compress(lines(META))
    assert library(["data", "beauty"]) == 0
    assert "Table 2:      9,930.00" in capsys.readouterr().out
    assert (datasets.load("beauty").name, datasets.load("beauty").n_users) == ("beauty", 6)


@pytest.mark.parametrize("ending", [".json", ".json.gz", ".jsonl", ".jsonl.gz"])
def test_own_copies_are_linked(empty_home: Path, tmp_path: Path, ending: str, capsys) -> None:
    own = tmp_path / f"mine{ending}", tmp_path / f"mine_meta{ending}"
    for path, records in zip(own, (REVIEWS, META), strict=True):
        path.write_bytes(gzip.compress(lines(records)) if ending.endswith("gz") else lines(records))
    asked = ["movies_and_tv", "--reviews", str(own[0]), "--metadata", str(own[1])]
    assert main(asked) == 0 and main(asked) == 0
    assert datasets.load("movies_and_tv").titles[1:] == [f"Thing {i}" for i in range(5)]
    assert "Table 2:    297,498.00" in capsys.readouterr().out


def test_own_copies_that_cannot_be_used(empty_home: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.zip").write_bytes(b"PK")
    (tmp_path / "mine.json").write_bytes(lines(REVIEWS))
    folder = empty_home / "data" / "raw" / "amazon2018_toys_raw"
    folder.mkdir(parents=True)
    (folder / "Toys_and_Games.json.gz").write_bytes(b"")
    for name, path, message in (
        ("toys", "no.json", "is no file; give the path"),
        ("toys", "mine.zip", "does not end in .json.gz"),
        ("toys", "mine.json", "is there already; delete it first"),
        ("movielens", "mine.json", "movielens is not made of Amazon's raw files"),
    ):
        assert main([name, "--reviews", str(tmp_path / path)]) == 1
        assert message in capsys.readouterr().err


def test_a_file_in_allmrec_data_is_not_silently_taken_for_yours(empty_home: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    shared = tmp_path / "shared" / "amazon2018_toys_raw"
    shared.mkdir(parents=True)
    (shared / "Toys_and_Games.json").write_bytes(lines(REVIEWS))
    (tmp_path / "mine.json").write_bytes(lines(REVIEWS))
    monkeypatch.setenv("ALLMREC_DATA", str(tmp_path / "shared"))
    assert main(["toys", "--reviews", str(tmp_path / "mine.json")]) == 1
    assert "comes first; unset ALLMREC_DATA" in capsys.readouterr().err
    assert main(["toys", "--mirror", "https://x/{name}/{file}"]) == 1
    assert "a mirror holds {kind} and {file}" in capsys.readouterr().err


def test_commands_by_name(capsys) -> None:
    assert library([]) == 2 and library(["date"]) == 2
    assert "{data}" in capsys.readouterr().err


def test_every_category_says_where_its_files_are() -> None:
    for name, category in catalogue.CATEGORIES.items():
        for stem in category.stems:
            urls = category.urls(stem)
            assert len(urls) >= 2 and not [url for url in urls if "{" in url or f"/{stem}.json" not in url]
        assert name in datasets.SOURCES
    assert "/categoryFilesSmall/Gift_Cards_5.json.gz" in catalogue.CATEGORIES["gift_cards"].urls("Gift_Cards_5")[0]
    assert "/metaFiles2/" in catalogue.CATEGORIES["toys"].urls("meta_Toys_and_Games")[0]


# -- editions ----------------------------------------------------------------------------------------------------------


def write(folder: Path, reviews: list, meta: list) -> tuple[Path, Path]:
    paths = folder / "r.json.gz", folder / "m.json"
    paths[0].write_bytes(gzip.compress(lines(reviews)))
    paths[1].write_bytes(lines(meta))
    return paths


def by_year(year: int) -> tuple[list, list]:
    """The same little world in each edition's format."""
    if year == 2023:
        reviews = [
            {"rating": r["overall"], "title": "Good", "text": "", "asin": f"variant of {r['asin']}", "parent_asin": r["asin"],
             "user_id": r["reviewerID"], "timestamp": r["unixReviewTime"] * 1000}
            for r in REVIEWS
        ]  # fmt: skip
        meta = [
            {"main_category": "All", "title": m["title"], "description": m["description"], "categories": m["category"],
             "parent_asin": m["asin"], "details": {}}
            for m in META
        ]  # fmt: skip
        return reviews, meta
    if year == 2014:
        old = [
            {"asin": m["asin"], "title": m["title"], "description": m["description"][0], "categories": [m["category"]]}
            for m in META
        ]
        return REVIEWS, [repr(m).encode() for m in old]
    return REVIEWS, META


@pytest.mark.parametrize("year", [2014, 2018, 2023])
def test_editions_give_the_same_dataset(tmp_path: Path, year: int) -> None:
    dataset = amazon.from_amazon(*write(tmp_path, *by_year(year)), "x")
    assert dataset.interactions.to_numpy().tolist() == [[u + 1, i + 1] for u in range(6) for i in range(5)]
    assert dataset.items.to_numpy().tolist() == [[f"I{i}", f"Thing {i}", "It is.", "Things"] for i in range(5)]


def test_files_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="r.json.gz holds no reviews in a format of Amazon.*its first record has one, two"):
        amazon.from_amazon(*write(tmp_path, [{"one": 1, "two": 2}], META), "x")
    with pytest.raises(DataError, match="m.json holds no metadata in a format of Amazon"):
        amazon.from_amazon(*write(tmp_path, REVIEWS, [{"title": "a"}]), "x")
    with pytest.raises(DataError, match="m.json holds reviews where metadata is wanted"):
        amazon.from_amazon(*write(tmp_path, REVIEWS, REVIEWS), "x")
    with pytest.raises(DataError, match="r.json.gz holds no review that can be read .*line 1 holds no whole JSON object"):
        amazon.from_amazon(*write(tmp_path, [b"<html>", b"</html>"], META), "x")
    for meta in ([], [b"<html>"], [{"asin": "another", "title": "a"}]):
        with pytest.raises(DataError, match="m.json has a title for none of the 5 items; is it the metadata file?"):
            amazon.from_amazon(*write(tmp_path, REVIEWS, meta), "x")


# -- bad lines ---------------------------------------------------------------------------------------------------------

GOOD = {"reviewerID": "a", "asin": "I", "overall": 5.0, "unixReviewTime": 1}
BAD = {
    b'{"reviewerID": "a", "asin": "I", "over': "holds no whole JSON object",
    b"": "is empty",
    b"\x00\x00": "holds no whole JSON object",
    b"\xff\xfe": "holds no whole JSON object",
    b"[" * 100_000: "holds no whole JSON object",
    b"[1]": "holds no JSON object",
    lines([GOOD, GOOD]).replace(b"\n", b""): "holds no whole JSON object",
    b'{"asin": "I", "overall": 5.0, "unixReviewTime": 1}': "lacks reviewerID",
    json.dumps(GOOD | {"asin": None}).encode(): "lacks asin",
    json.dumps(GOOD | {"asin": ["I"]}).encode(): "has a list for asin",
    json.dumps(GOOD | {"reviewerID": {"x": 1}}).encode(): "has a dict for reviewerID",
    json.dumps(GOOD | {"reviewerID": "a" * 65}).encode(): "has a reviewerID of over 64 bytes",
    json.dumps(GOOD | {"overall": "five"}).encode(): "has 'five' for overall, no number from 0 to 5",
    json.dumps(GOOD | {"overall": 1e300}).encode(): "has '1e+300' for overall, no number from 0 to 5",
    json.dumps(GOOD | {"overall": float("nan")}).encode(): "has 'nan' for overall, no number from 0 to 5",
    json.dumps(GOOD | {"overall": True}).encode(): "has 'True' for overall, no number from 0 to 5",
    json.dumps(GOOD | {"unixReviewTime": 10**30}).encode(): "has '10000000000000000000' for unixReviewTime, no number from 0 to 1e+13",
    json.dumps(GOOD | {"unixReviewTime": -5}).encode(): "has '-5' for unixReviewTime, no number from 0 to 1e+13",
}  # fmt: skip


@pytest.mark.parametrize("line", list(BAD), ids=lambda line: repr(line[:60]))
def test_a_bad_line_is_named_and_skipped_or_stops(tmp_path: Path, line: bytes) -> None:
    paths = write(tmp_path, [GOOD, GOOD, line, GOOD], [{"asin": "I", "title": "A thing"}])
    dataset = amazon.from_amazon(*paths, "x", threshold=1)
    assert len(dataset.interactions) == 3
    assert dataset.report.rows[0] == ("bad lines in r.json.gz", 1, f"skipped: line 3 {BAD[line]}")
    with pytest.raises(DataError) as stopped:
        amazon.from_amazon(*paths, "x", threshold=1, strict=True)
    assert str(stopped.value).startswith(f"r.json.gz, line 3 {BAD[line]}; mend or delete the line")


def test_line_numbers_hold_across_blocks_and_only_ten_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonlines, "BLOCK", 500)
    bad = [7, 50, 51, 333]
    records = [b"{" if number in bad else GOOD | {"unixReviewTime": number} for number in range(1, 401)]
    report = DataReport()
    events, _ = amazon.read_reviews(write(tmp_path, records, [])[0], report)
    assert events["timestamp"].tolist() == [number for number in range(1, 401) if number not in bad]
    assert report.rows[0][2] == "skipped: " + "; ".join(f"line {number} holds no whole JSON object" for number in bad)
    report = DataReport()
    amazon.read_reviews(write(tmp_path, [GOOD, *[b"{"] * 30], [])[0], report)
    assert report.rows[0][1] == 30 and report.rows[0][2].endswith("line 11 holds no whole JSON object; ...")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_line_of_absurd_length_is_skipped_without_holding_it(tmp_path: Path, monkeypatch, zipped: bool) -> None:
    monkeypatch.setattr(jsonlines, "BLOCK", 1000)
    monkeypatch.setattr(jsonlines, "MAX_LINE", 1000)
    huge = json.dumps(GOOD | {"reviewText": "x" * 50_000}).encode()
    path = tmp_path / "r.json"
    data = lines([GOOD, huge, GOOD, GOOD])
    path.write_bytes(gzip.compress(data) if zipped else data)
    reader = jsonlines.JsonLines(path, DataReport())
    assert max(len(block.data) for block in reader._blocks()) <= 2000
    events, _ = amazon.read_reviews(path, reader.report)
    assert len(events) == 3
    assert reader.report.rows[0] == ("bad lines in r.json", 1, "skipped: line 2 is over 0 MB long")


values = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=5), st.sampled_from(["[a", "[]", "{", "5.0", " 3"]),
    st.lists(st.text(max_size=2), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)  # fmt: skip
records = st.dictionaries(st.sampled_from([*GOOD, "reviewText"]), values, max_size=5).map(
    lambda changed: json.dumps(GOOD | changed).encode()
)
noise = st.binary(max_size=20).filter(lambda b: b"\n" not in b and b[:2] != b"\x1f\x8b")  # neither two lines nor gzip
anything = st.one_of(records, st.just(lines([GOOD])[:-1]), noise)


def read_both_ways(path: Path, fields: jsonlines.Fields) -> list[tuple[list, list]]:
    """Rows and report, by polars where it can and by line everywhere."""
    results = []
    for forced in (False, True):
        report = DataReport()
        reader = jsonlines.JsonLines(path, report)
        if forced:
            reader._table = reader._line_by_line
        results.append(([row for table in reader.tables(fields) for row in table.rows()], report.rows))
    return results


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(anything, max_size=4))
@example([json.dumps(GOOD | {"reviewerID": number}).encode() for number in (0.0, -0.0, 1.5, 1e20, 1e-7, 1e300, 10**20)])
def test_polars_and_line_by_line_agree(tmp_path_factory: pytest.TempPathFactory, made: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("lines") / "r.json"
    path.write_bytes(b"".join(line + b"\n" for line in made))
    first, second = read_both_ways(path, amazon.review_fields(amazon.REVIEW_NAMES["reviewerID"]))
    assert first == second


@pytest.mark.parametrize("description", [["", "Soft"], ["Soft", ""], [None, "Soft"], [], None, "Soft", "", [1]])
def test_polars_and_line_by_line_agree_on_texts(tmp_path: Path, description: object) -> None:
    more = {"asin": "J", "title": "", "description": description, "category": ["All", "Soaps"], "price": "\u00e9"}
    odd = [b'{"asin": "K", "title": "[1]", "category": [], "price": "\xff"}', b'{"asin": "L", "category": [["a", "b"]]}']
    path = tmp_path / "m.json"
    for made in ([more], [more, {"asin": "M", "description": description}], [more, *odd]):
        path.write_bytes(lines(made))
        first, second = read_both_ways(path, amazon.text_fields(amazon.TEXT_NAMES["asin"]))
        shown = [[(item, title or None, texts or [], kinds) for item, title, texts, kinds in table] for table, _ in (first, second)]
        assert shown[0] == shown[1] and first[1] == second[1] and first[0]


def test_polars_is_used_where_lines_are_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    slow = jsonlines.JsonLines._line_by_line
    monkeypatch.setattr(jsonlines.JsonLines, "_line_by_line", lambda *a: used.append(a) or slow(*a))
    amazon.from_amazon(*write(tmp_path, *by_year(2018)), "x")
    amazon.from_amazon(*write(tmp_path, *by_year(2023)), "x")
    assert used == []
    amazon.from_amazon(*write(tmp_path, *by_year(2014)), "x")
    assert len(used) == 1  # Python literals


# -- texts -------------------------------------------------------------------------------------------------------------


def test_title_and_description_are_independent_and_clean(tmp_path: Path) -> None:
    meta = [
        {"asin": "I0", "title": "Crabtree &amp; Evelyn", "category": []},
        {"asin": "I1", "description": ["<b>Soft</b> &amp; warm"], "category": []},
        {"asin": "I2", "title": "var aPageStart = (new Date()).getTime();", "description": [], "category": []},
        {"asin": "I3", "title": "[Import] \ud800 disc", "description": None, "category": None},
        {"asin": "I4", "title": ["a", "list"], "description": "not a list", "category": ["All", "Fun &amp; Games"]},
    ]
    dataset = amazon.from_amazon(*write(tmp_path, REVIEWS, meta), "x")
    assert dataset.titles[1:] == ["Crabtree & Evelyn", NO_TITLE, NO_TITLE, "[Import] ? disc", NO_TITLE]
    assert dataset.items["description"].tolist() == ["", "Soft & warm", "", "", "not a list"]
    assert dataset.items["genres"].tolist() == ["", "", "", "", "Fun & Games"]
    found = {what: count for what, count, _ in dataset.report.rows}
    assert (
        found["titles that are pieces of a page"],
        found["items without a title"],
        found["items without a description"],
    ) == (1, 3, 3)


# -- from raw files to a recommendation --------------------------------------------------------------------------------


def test_gift_cards_from_raw_files_to_hit_rates(home: Path) -> None:
    need("amazon2018_giftcards_raw")
    from allmrec_lib.experiment import Experiment

    assert main(["gift_cards"]) == 0
    run = Experiment("gift_cards", profile="smoke")
    assert (run.data.n_users, run.data.n_items, run.data.digest) == (458, 147, "f54fb11c2499a072")
    table = run.table(["Popularity", "SASRec", "A-LLMRec"])
    assert table["hit@1"].between(0, 1).all() and len(run.scores("A-LLMRec")) == run.profile.data.max_test_users


# -- size --------------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    padding = "x" * 20_000
    with open(path, "wb") as file:
        for number in range(4000):  # 80 MB of texts
            file.write(json.dumps(GOOD | {"unixReviewTime": number, "reviewText": padding}).encode() + b"\n")
    events, ids = amazon.read_reviews(path, DataReport())
    assert len(events) == 4000 and ids.to_list() == ["I"]
    assert events.memory_usage(index=False).sum() == 4000 * 20


def test_the_benchmark_s_two_sides_agree(tmp_path: Path) -> None:
    from tests.bench.raw_files import theirs
    from tests.bench.synthetic import write_raw

    paths = write_raw(tmp_path, 20_000)
    dataset = amazon.from_amazon(*paths, "x", threshold=5)
    users, titles = theirs(*paths, threshold=5)
    assert dataset.interactions.groupby("user")["item"].apply(list).tolist() == list(users.values())
    assert len(titles) == dataset.n_items > 100 and dataset.n_users == len(users) > 100


def test_the_page_says_what_reading_took() -> None:
    from allmrec_lib import speed
    from tests.bench.raw_files import row

    run = {"users": 7, "cpu_s": 2.0, "peak_mb": 500.0}
    made = row({"ours": [run | {"wall_s": 1.0}], "theirs": [run | {"wall_s": 12.0, "cpu_s": 11.0, "peak_mb": 900.0}]}, 1000)
    assert (made["ours"], made["ratio"], made["ratio_cpu"]) == (1000.0, 12.0, 5.5)
    assert "1,000 reviews" in speed.raw_files([made]) and "500 MB against 900 MB" in speed.raw_files([made])
    assert "**12** [12, 12] | 10: reached" in speed.ratios([made]) and speed.raw_files([]) == ""
    with pytest.raises(SystemExit, match="do not find the same users"):
        row({"ours": [run | {"wall_s": 1.0}], "theirs": [run | {"wall_s": 2.0, "users": 8}]}, 1000)
