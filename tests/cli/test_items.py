"""Items in, out and away, against a real server."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dmesr
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from running_server import RunningServer

from .calls import Called

Cli = Callable[..., Called]


def _picture(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(data, "PNG")
    return data.getvalue()


def test_csv_with_a_mapping_of_columns(cli: Cli, catalog: dmesr.Client, tmp_path: Path):
    (tmp_path / "img").mkdir()
    (tmp_path / "img/red.png").write_bytes(_picture("red"))
    (tmp_path / "films.csv").write_text(
        'sku,label,kinds,poster,internal\n1,"Heat, 1995",crime|drama,red.png,x\n2,Solaris,sf,,y\n', encoding="utf-8"
    )
    called = cli(
        *("items", "import", "films.csv", "--id", "sku", "--attribute", "title=label", "--attribute", "kinds"),
        *("--picture", "poster", "--picture-root", "img", "--split", "|"),
    )
    assert (called.code, called.err) == (0, "")
    assert called.out == "2 inserted, 0 updated, 0 unchanged, 0 rejected\n"
    heat = catalog.items.get("1")
    assert heat.attributes == {"title": ["Heat, 1995"], "kinds": ["crime", "drama"]}
    assert heat.picture == f"sha256:{hashlib.sha256(_picture('red')).hexdigest()}"
    assert catalog.items.get("2").picture is None


def test_parquet_and_jsonl_bring_the_same_items(cli: Cli, catalog: dmesr.Client, tmp_path: Path):
    rows = [{"item_id": "a", "title": "A", "tags": ["x", "y"], "year": 1999}, {"item_id": "b", "title": "B"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert cli("items", "import", "rows.jsonl").out.startswith("2 inserted")
    assert cli("items", "import", "rows.parquet").out == "0 inserted, 0 updated, 2 unchanged, 0 rejected\n"
    assert catalog.items.get("a").attributes == {"title": ["A"], "tags": ["x", "y"], "year": ["1999"]}


def test_a_second_import_writes_only_what_changed(cli: Cli, tmp_path: Path):
    file = tmp_path / "films.csv"
    file.write_text("item_id,title\n1,Heat\n2,Solaris\n")
    cli("items", "import", file)
    file.write_text("item_id,title\n1,Heat\n2,Stalker\n3,Ran\n")
    counts = cli("items", "import", file, "--json").json
    assert counts == {"inserted": 1, "updated": 1, "unchanged": 1, "rejected": [], "picture_problems": []}


def test_bad_rows_cost_only_themselves(cli: Cli, catalog: dmesr.Client, tmp_path: Path):
    rows = [f'{{"item_id": "good{place}", "title": "G"}}' for place in range(3)]
    bad = ['{"title": "no id"}', "not json", *(f'{{"item_id": "n{place}", "x": {{}}}}' for place in range(12))]
    (tmp_path / "mixed.jsonl").write_text("\n".join([rows[0], *bad, *rows[1:]]) + "\n")
    called = cli("items", "import", "mixed.jsonl", "--rejects", "rejected.jsonl")
    assert called.code == 0
    assert called.out == "3 inserted, 0 updated, 0 unchanged, 14 rejected\n"
    assert "INVALID_ATTRIBUTE 12" in called.err
    shown = [line for line in called.err.splitlines() if line.startswith("  ") and "more" not in line]
    assert len(shown) == 10
    assert "… and 4 more; all of them are in rejected.jsonl" in called.err
    written = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert len(written) == 14
    assert written[0]["reason"] == "INVALID_ITEM_ID"
    assert written[0]["metadata"]["row"] == "2"
    assert catalog.items.count() == 3
    assert len(cli("items", "import", "mixed.jsonl", "--json").json["rejected"]) == 14
    assert cli("items", "import", "mixed.jsonl", "--strict").code == 1


def test_an_import_of_nothing_but_bad_rows_fails(cli: Cli, tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text('{"title": "no id"}\n')
    called = cli("items", "import", "bad.jsonl")
    assert called.code == 1
    assert called.err.splitlines()[-1] == "error: 1 row rejected, none taken"


def test_an_unreadable_picture_leaves_the_item(cli: Cli, catalog: dmesr.Client, tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "films.csv").write_text("item_id,title,poster\n1,Heat,broken.png\n2,Ran,absent.png\n")
    called = cli("items", "import", "films.csv", "--picture", "poster")
    assert called.code == 0
    assert called.out == "2 inserted, 0 updated, 0 unchanged, 0 rejected, 2 taken without their picture\n"
    assert "PICTURE_UNREADABLE 1" in called.err
    assert catalog.items.get("1").picture is None


def test_keep_pictures(cli: Cli, catalog: dmesr.Client, tmp_path: Path):
    catalog.items.upsert([dmesr.Item("1", {"title": "Heat"}, picture=_picture("red"))])
    before = catalog.items.get("1").picture
    (tmp_path / "films.csv").write_text("item_id,title\n1,Heat (1995)\n")
    cli("items", "import", "films.csv", "--keep-pictures")
    kept = catalog.items.get("1")
    assert (kept.title, kept.picture) == ("Heat (1995)", before)
    cli("items", "import", "films.csv")
    assert catalog.items.get("1").picture is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["absent.csv"], 2, "absent.csv"),
        (["films.csv", "--id", "sku"], 1, "has no column 'sku'"),
        (["films.csv", "--attribute", "=x"], 2, "NAME=COLUMN"),
        (["films.xml"], 1, ".parquet"),
        ([], 2, "--dataset"),
        (["films.csv", "--dataset", "movielens"], 2, "not both"),
        (["films.csv", "--rejects", "no/such/folder.jsonl"], 2, "no folder"),
    ],
)
def test_mistakes_are_one_line(cli: Cli, tmp_path: Path, arguments: list[str], code: int, message: str):
    (tmp_path / "films.csv").write_text("item_id,title\n1,Heat\n")
    (tmp_path / "films.xml").write_text("<films/>")
    called = cli("items", "import", *arguments)
    assert called.code == code
    assert called.out == ""
    assert message in called.err
    assert len(called.err.splitlines()) == 1


def test_list_and_get(cli: Cli, catalog: dmesr.Client):
    title = "A [bold]title[/bold] that is " + "very " * 30 + "long 🎬"
    catalog.items.upsert([dmesr.Item("1", {"title": title}), dmesr.Item("2", {"name": "Ran", "kinds": ["a", "b"]})])
    lines = cli("items", "list").out.splitlines()
    assert lines[0].split() == ["item", "title", "attributes", "picture", "updated"]
    assert title in lines[1], "what is piped is neither cut nor marked up"
    assert "\x1b" not in "".join(lines)
    listed = cli("items", "list", "--json").json
    assert [item["item_id"] for item in listed] == ["1", "2"]
    assert cli("items", "list", "--limit", "1", "--json").json[0]["item_id"] == "1"
    assert cli("--json", "items", "get", "2").json["attributes"] == {"name": ["Ran"], "kinds": ["a", "b"]}
    shown = cli("items", "get", "1", "2", "nine")
    assert shown.code == 1
    assert "kinds    a, b" in shown.out
    assert shown.err == "error: no item has the id nine\n"
    missing = cli("items", "get", "nine")
    assert missing.code == 1
    assert "[ITEM_NOT_FOUND]" in missing.err


def test_an_empty_list_is_valid_json(cli: Cli):
    assert cli("items", "list", "--json").json == []


def test_a_picture_comes_back(cli: Cli, catalog: dmesr.Client, tmp_path: Path):
    catalog.items.upsert(
        [dmesr.Item("1", {"title": "Heat"}, picture=_picture("blue")), dmesr.Item("2", {"title": "R"})]
    )
    assert cli("items", "get", "1", "--save-picture", "out.png").code == 0
    assert (tmp_path / "out.png").read_bytes() == _picture("blue")
    assert "has no picture" in cli("items", "get", "2", "--save-picture", "out2.png").err


def test_delete_asks_and_refuses_where_nobody_can_answer(cli: Cli, catalog: dmesr.Client):
    catalog.items.upsert([dmesr.Item("1", {"title": "Heat"}), dmesr.Item("2", {"title": "Ran"})])
    refused = cli("items", "delete", "1")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert catalog.items.count() == 2
    done = cli("items", "delete", "1", "nine", "--yes")
    assert done.code == 1
    assert done.err == "deleted 1\nerror: no item has the id nine\n"
    assert catalog.items.count() == 1


def test_an_unknown_catalog_is_an_error_before_or_after_the_command(cli: Cli):
    for arguments in (["--catalog", "nope", "items", "list"], ["items", "list", "--catalog", "nope"]):
        called = cli(*arguments)
        assert called.code == 1
        assert "CATALOG_NOT_FOUND" in called.err


def test_no_server_says_how_to_start_one(cli: Cli):
    called = cli("items", "list", "--server", "127.0.0.1:1")
    assert called.code == 1
    assert called.err == (
        "error: no server listens at 127.0.0.1:1: "
        "start one with 'dmesr-cli serve', or name another with --server HOST:PORT\n"
    )


def test_a_reader_that_goes_away_is_no_error(process: Callable[..., subprocess.Popen[str]], catalog: dmesr.Client):
    text = "word " * 500
    catalog.items.upsert(dmesr.Item(str(number), {"title": text}) for number in range(400))
    listing = process("items", "list")
    assert listing.stdout is not None
    assert listing.stderr is not None
    listing.stdout.readline()
    listing.stdout.close()
    assert listing.wait(30) in (0, 1)
    assert listing.stderr.read() == ""
    listing.stderr.close()


def test_an_import_takes_constant_memory(running: RunningServer, catalog: dmesr.Client, tmp_path: Path):
    """Peak memory must not grow with the file: 64 MB of rows cost less than a quarter of that over 1 MB of rows."""
    peaks = []
    for name, rows in (("small", 500), ("large", 32_000)):
        file = tmp_path / f"{name}.jsonl"
        with file.open("w") as sink:
            for number in range(rows):
                sink.write(json.dumps({"item_id": f"{name}{number % 500}", "text": f"{number:09}" * 220}) + "\n")
        code = (
            "import resource, sys\nfrom dmesr.cli import main\n"
            "code = main(sys.argv[1:])\n"
            "sys.stderr.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))\nsys.exit(code)"
        )
        arguments = ["--server", running.address, "--catalog", catalog.catalog_name, "items", "import", str(file)]
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stderr.split()[-1]))
    assert peaks[1] - peaks[0] < 16 * 1024, f"peak {peaks[0]} KiB for 1 MB of rows, {peaks[1]} KiB for 64 MB"


def test_a_dataset_of_the_trainer(cli: Cli, catalog: dmesr.Client, tmp_path: Path):
    folder = tmp_path / "ml-latest-small"
    folder.mkdir()
    (folder / "movies.csv").write_text(
        "movieId,title,genres\n1,Toy Story (1995),Animation|Comedy\n6,Heat (1995),Crime\n"
    )
    (folder / "links.csv").write_text("movieId,imdbId,tmdbId\n1,0114709,862\n6,0113277,949\n")
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,4.0,964982703\n")
    called = cli("items", "import", "--dataset", "movielens", "--data", tmp_path)
    assert called.code == 0, called.err
    assert called.out == "2 inserted, 0 updated, 0 unchanged, 0 rejected\n"
    assert not called.err
    assert "Heat" in catalog.items.get("6").title
    assert "known are" in cli("items", "import", "--dataset", "nope").err
    assert cli("catalogs", "create", "things").code == 0
    called = cli("items", "import", "--dataset", "movielens", "--data", tmp_path, "--catalog", "things")
    assert called.code == 0
    assert "created with --domain 'film'" in called.err
    assert cli("catalogs", "drop", "things", "--yes").code == 0


def test_a_dataset_without_the_trainer_names_the_line(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "dmesr_trainer.datasets", None)
    called = cli("items", "import", "--dataset", "sample")
    assert called.code == 2
    assert "pip install 'dmesr[trainer]'" in called.err
