"""Descriptions from the command line: read, corrected, taken along and brought in."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dmesr
import pyarrow.parquet as pq
import pytest
from PIL import Image

from .calls import Called

Cli = Callable[..., Called]


@pytest.fixture
def films(catalog: dmesr.Client) -> dmesr.Client:
    """Three items, one of them with a picture."""
    data = io.BytesIO()
    Image.new("RGB", (32, 48), "navy").save(data, "PNG")
    catalog.items.upsert(
        [
            dmesr.Item("1", {"title": "Heat", "genres": ["Crime", "Drama"]}, picture=data.getvalue()),
            dmesr.Item("2", {"title": "Solaris", "genres": ["Science fiction"]}),
            dmesr.Item("3", {"title": "Ran"}),
        ]
    )
    return catalog


@pytest.fixture
def described(films: dmesr.Client, cli: Cli) -> dmesr.Client:
    """The same, described by the palette."""
    called = cli("enrich", "start")
    assert called.code == 0, called.err
    return films


def test_descriptions_made_elsewhere(cli: Cli, films: dmesr.Client, tmp_path: Path):
    rows = [
        {"item_id": "1", "route": "text", "text": "A heist and two men."},
        {"item_id": "2", "route": "text", "text": "A planet that dreams."},
        {"item_id": "nine", "route": "text", "text": "Nobody."},
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "no json\n")
    called = cli("descriptions", "import", "mine.jsonl", "--model", "editors-1", "--no-mllm", "--rejects", "r.jsonl")
    assert called.code == 0, called.err
    assert called.out.startswith("2 inserted, 0 updated, 0 unchanged, 2 rejected")
    reasons = {json.loads(line)["reason"] for line in (tmp_path / "r.jsonl").read_text().splitlines()}
    assert reasons == {"ITEM_NOT_FOUND", "UNREADABLE_ROW"}
    done = cli("enrich", "start", "--describer", "import", "--routes", "text")
    assert done.code == 0, done.err
    assert "A heist and two men." in cli("descriptions", "show", "1").out


def test_show_stands_the_routes_side_by_side(cli: Cli, described: dmesr.Client):
    shown = cli("descriptions", "show", "1")
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert lines[0] == "item 1"
    assert [line.split(":")[0] for line in lines[1:5]] == ["  original", "  text", "  image", "  hybrid"]
    assert lines[6].split() == ["text", "image", "hybrid"]
    assert lines[7].count("palette, no multimodal LLM") == 3
    assert sum(line.startswith("recipe") for line in lines) == 1


def _edit(cli: Cli, *arguments: str) -> Called:
    return cli("descriptions", "edit", "1", "--route", "text", *arguments)


def test_a_correction_and_its_withdrawal(cli: Cli, described: dmesr.Client, tmp_path: Path):
    machine = described.enrichment.descriptions(["1"]).descriptions[0].text
    called = _edit(cli, "--text", "A heist and two men.", "--author", "anna")
    assert (called.code, called.out) == (0, "")
    assert "enrich start" in called.err
    shown = cli("descriptions", "show", "1").out
    assert "  text: A heist and two men.\n" in shown
    assert f"  text, as it was before a person corrected it: {machine}" in shown
    assert "anna" in shown
    done = cli("enrich", "start", "--json").json
    assert {one["route"]: (one["described"], one["encoded"]) for one in done["routes"]}["text"] == (0, 1)

    (tmp_path / "new.txt").write_text("Two men and a diner.\n")
    again = _edit(cli, "--file", "new.txt", "--author", "ben", "--json").json
    assert (again["text"], again["provenance"]["author"]) == ("Two men and a diner.", "ben")
    assert again["replaced"]["text"] == machine
    assert "as it was" not in cli("descriptions", "show", "2").out

    assert "what the describer made stands again" in _edit(cli, "--withdraw").err
    assert described.enrichment.descriptions(["1"]).descriptions[0].text == machine
    failed = _edit(cli, "--withdraw")
    assert (failed.code, "[CORRECTION_NOT_FOUND]" in failed.err) == (1, True)


def test_a_correction_in_an_editor(cli: Cli, described: dmesr.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The editor is a real process; it sees the text that stands."""
    script = tmp_path / "my editor.py"
    script.write_text(
        "import pathlib, sys\n"
        "file = pathlib.Path(sys.argv[1])\n"
        "file.write_text(file.read_text().replace('Heat', 'Heat (1995)'))\n"
    )
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"'{sys.executable}' '{script}'")
    monkeypatch.setenv("DMESR_AUTHOR", "carla")
    made = _edit(cli, "--editor", "--json").json
    assert made["text"] == made["replaced"]["text"].replace("Heat", "Heat (1995)")
    assert made["provenance"]["author"] == "carla"

    monkeypatch.setenv("EDITOR", f"'{sys.executable}' -c pass")
    assert "nothing was changed" in _edit(cli, "--editor").err
    monkeypatch.setenv("EDITOR", f"'{sys.executable}' -c 'raise SystemExit(3)'")
    assert "ended with 3" in _edit(cli, "--editor").err
    monkeypatch.setenv("EDITOR", "no-such-editor")
    called = _edit(cli, "--editor")
    assert (called.code, len(called.err.splitlines())) == (1, 1)


def test_the_login_name_is_the_author(cli: Cli, described: dmesr.Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DMESR_AUTHOR", raising=False)
    monkeypatch.setenv("LOGNAME", "dora")
    assert _edit(cli, "--text", "A heist.", "--json").json["provenance"]["author"] == "dora"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one of"),
        (["--text", "a", "--withdraw"], "give one of"),
        (["--text", "  "], "is empty"),
        (["--file", "nowhere.txt"], "cannot read nowhere.txt"),
        (["--text", "a", "--recipe", "nothing"], "[RECIPE_NOT_FOUND]"),
    ],
)
def test_bad_corrections_are_one_line(cli: Cli, described: dmesr.Client, arguments: list[str], said: str):
    called = _edit(cli, *arguments)
    assert called.code in (1, 2)
    assert said in called.err
    assert len(called.err.splitlines()) == 1


def _texts(client: dmesr.Client, recipe: str) -> list[tuple[str, str, str]]:
    return [(one.item_id, one.route, one.text) for one in client.enrichment.list_descriptions(recipe=recipe)]


@pytest.mark.parametrize("name", ["all.parquet", "all.jsonl"])
def test_the_round_trip(cli: Cli, described: dmesr.Client, tmp_path: Path, name: str):
    _edit(cli, "--text", "A “heist”,\nand two men.", "--author", "anna")
    called = cli("descriptions", "export", "--output", name)
    assert (called.code, called.out) == (0, ""), called.err
    assert "wrote 5 descriptions" in called.err
    rows: list[dict[str, Any]]
    if name.endswith("parquet"):
        rows = pq.read_table(tmp_path / name).to_pylist()
    else:
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    assert [(row["item_id"], row["route"]) for row in rows] == [
        *(("1", "text"), ("1", "image"), ("1", "hybrid"), ("2", "text"), ("3", "text")),
    ]
    assert (rows[0]["describer"], rows[0]["author"], rows[0]["replaced_text"]) == (
        *("person", "anna", "Heat is a crime and drama film."),
    )
    assert (rows[1]["describer"], rows[1]["is_mllm"], rows[1]["prompt_revision"]) == ("palette", False, "palette-1")
    assert all(row["create_time"] and row["content_hash"] for row in rows)

    called = cli("descriptions", "import", name, "--recipe", "again")
    assert called.out.startswith("5 inserted, 0 updated, 0 unchanged, 0 rejected"), called.err
    assert _texts(described, "again") == _texts(described, "default")
    again = described.enrichment.descriptions(["1"], recipe="again").descriptions[0].provenance
    assert again is not None
    assert (again.describer, again.model, again.is_mllm, again.author) == ("import", "none", False, "anna")
    assert [file.name for file in tmp_path.iterdir()] == [name]  # nothing unfinished is left


def test_failures_are_exported_when_asked_for(cli: Cli, described: dmesr.Client, tmp_path: Path):
    data = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(data, "PNG")
    cut_short = data.getvalue()[:2_000]
    described.items.upsert([dmesr.Item("4", picture=cut_short)])
    cli("enrich", "start")
    stats = cli("enrich", "stats")
    assert "image failed: PICTURE_UNREADABLE 1" in stats.out
    cli("descriptions", "export", "--output", "texts.jsonl")
    called = cli("descriptions", "export", "--output", "all.jsonl", "--failures", "--json")
    assert called.json["descriptions"] == 6
    texts, everything = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("texts.jsonl", "all.jsonl")
    )
    (failed,) = [row for row in everything if row not in texts]
    assert (failed["item_id"], failed["route"], failed["text"]) == ("4", "image", None)
    assert failed["problem_reason"] == "PICTURE_UNREADABLE"
    assert failed["problem_message"]
    assert "failed: " in cli("descriptions", "show", "4").out


def test_whose_texts_they_are_must_be_known(cli: Cli, described: dmesr.Client, tmp_path: Path):
    row = {"item_id": "1", "route": "text", "text": "By one."}
    (tmp_path / "plain.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "plain.csv").write_text("item_id,route,text\n1,text,By one.\n")
    two = [json.dumps({**row, "model": model}) for model in ("one", "two")]
    (tmp_path / "two.jsonl").write_text("\n".join(two) + "\n")
    for name, said in (("plain.jsonl", "nobody"), ("plain.csv", "'model'"), ("two.jsonl", "one, two")):
        called = cli("descriptions", "import", name)
        assert (called.code, called.out) == (2, "")
        assert said in called.err
        assert "--model" in called.err
        assert len(called.err.splitlines()) == 1
    called = cli("descriptions", "import", "two.jsonl", "--model", "both", "--recipe", "both")
    assert called.out.startswith("1 inserted, 0 updated, 1 unchanged"), called.err


def test_bad_names_of_files(cli: Cli, described: dmesr.Client):
    assert "ends in none of" in cli("descriptions", "export", "--output", "all.csv").err
    assert "no folder" in cli("descriptions", "export", "--output", "nowhere/all.parquet").err
    called = cli("descriptions", "export", "--output", "all.parquet", "--recipe", "nothing")
    assert (called.code, "[RECIPE_NOT_FOUND]" in called.err) == (1, True)
    assert not Path("all.parquet").exists()
