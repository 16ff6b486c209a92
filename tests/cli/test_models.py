"""Vectors, models, recommendations and their evaluation, on a tiny artefact whose every number is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import dmesr
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .calls import Called

Cli = Callable[..., Called]

TEXT = {
    "a": [1.0, 0.0, 0.0],
    "b": [0.9, 0.1, 0.0],
    "c": [0.0, 1.0, 0.0],
    "d": [0.0, 0.8, 0.3],
    "e": [0.2, 0.2, 1.0],
}
COUNTS = {"a": 5, "b": 3, "c": 2, "d": 1}  # "e" is new: the training never saw it


@pytest.fixture
def filled(catalog: dmesr.Client) -> dmesr.Client:
    """A catalog of six items, five of them with vectors of the recipe "mine"."""
    catalog.items.upsert(dmesr.Item(name, {"title": f"Title {name}", "kind": "film"}) for name in "abcdef")
    catalog.embeddings.write(
        recipe="mine",
        source="text",
        item_ids=list(TEXT),
        vectors=np.array(list(TEXT.values()), "f4"),
        create_recipe=True,
    )
    return catalog


@pytest.fixture
def write(filled: dmesr.Client, tiny_artefact: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """Writes an artefact for the catalog's recipe."""
    (recipe,) = filled.embeddings.recipes()

    def make(name: str, counts: dict[str, int]) -> Path:
        items = {item: (count, None) for item, count in counts.items()}
        folder: Path = tiny_artefact.write(tmp_path / name, recipe_id=recipe.recipe_id, items=items, sources=("text",))
        return folder

    return make


@pytest.fixture
def folder(write: Callable[..., Path]) -> Path:
    return write("artefact", COUNTS)


@pytest.fixture
def vectors(tiny_artefact: ModuleType) -> dict[str, np.ndarray]:
    return {name: tiny_artefact.item_vector({"text": values}) for name, values in TEXT.items()}


def test_catalogs(cli: Cli):
    made = cli("catalogs", "create", "games", "--domain", "video game", "--language", "de", "--json")
    assert made.json["domain"] == "video game"
    again = cli("catalogs", "create", "games")
    assert (again.code, "[CATALOG_EXISTS]" in again.err) == (1, True)
    assert "games" in {row["name"] for row in cli("catalogs", "list", "--json").json}
    assert cli("catalogs", "drop", "games").code == 2
    assert cli("catalogs", "drop", "games", "--yes").err == "dropped the catalog games\n"
    assert cli("catalogs", "drop", "games", "--yes").code == 1


def test_embeddings_stats_and_neighbours(cli: Cli, filled: dmesr.Client):
    stats = cli("embeddings", "stats", "--recipe", "mine", "--json").json
    assert stats["items"] == 6
    assert stats["rows"] == 5
    assert stats["sources"][0]["coverage"] == pytest.approx(5 / 6)
    table = cli("embeddings", "stats", "--recipe", "mine").out
    assert "0.8333" in table
    near = cli("embeddings", "neighbours", "a", "--recipe", "mine", "-k", "2", "--json").json
    assert [one["item_id"] for one in near] == ["b", "e"]
    assert near[0]["similarity"] == pytest.approx(0.9 / math.hypot(0.9, 0.1), abs=1e-5)
    assert near[0]["title"] == "Title b"
    assert "Title b" in cli("embeddings", "neighbours", "a", "--recipe", "mine").out
    assert "[VECTOR_MISSING]" in cli("embeddings", "neighbours", "f", "--recipe", "mine").err


def test_drift_between_versions_and_between_recipes(cli: Cli, filled: dmesr.Client, tmp_path: Path):
    with filled.embeddings.pin("mine") as pin:
        turned = np.array([[0.0, 1.0, 0.0]], "f4")  # "a" was [1, 0, 0]
        filled.embeddings.write(recipe="mine", source="text", item_ids=["a"], vectors=turned)
        report = cli("embeddings", "drift", f"mine@{pin.version}", "mine", "-k", "2", "--json").json
        (text,) = report["sources"]
        assert (text["both"], text["unchanged"], text["comparable"]) == (5, 4, True)
        assert text["mean_shift"] == pytest.approx(1 / 5)
        assert text["moved"][0]["item_id"] == "a"
        assert text["moved"][0]["shift"] == pytest.approx(1.0)
        told = cli("embeddings", "drift", f"mine@{pin.version}", "mine", "--figure", "drift.svg")
        assert told.code == 0, told.err
        assert "text a Title a: shift 1.000" in told.out
        assert "<svg" in (tmp_path / "drift.svg").read_text()
    wide = np.eye(5, 4, dtype="f4")
    filled.embeddings.write(recipe="wide", source="text", item_ids=list(TEXT), vectors=wide, create_recipe=True)
    (text,) = cli("embeddings", "drift", "mine", "wide", "--json").json["sources"]
    assert (text["dims"], text["comparable"], text["mean_shift"]) == ([3, 4], False, None)
    for mistake in (("mine@x", "mine"), ("mine", "mine", "--figure", "drift.txt")):
        assert cli("embeddings", "drift", *mistake).code == 2
    assert "[RECIPE_NOT_FOUND]" in cli("embeddings", "drift", "mine", "nobody").err


@pytest.mark.parametrize("name", ["vectors.parquet", "vectors.arrow", "vectors.npz"])
def test_export_in_every_format(cli: Cli, filled: dmesr.Client, tmp_path: Path, name: str):
    told = cli("embeddings", "export", "--recipe", "mine", "--source", "text", "--output", name, "--json")
    assert told.code == 0, told.err
    assert told.json["present"] == {"text": 5}
    file = tmp_path / name
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            ids, matrix, present = arrays["item_id"], arrays["text"], arrays["text_present"]
        assert present.all()
        assert dict(zip(ids.tolist(), matrix.tolist(), strict=True)) == {
            item: pytest.approx(values) for item, values in TEXT.items()
        }
        return
    if file.suffix == ".parquet":
        table = pq.read_table(file)
    else:
        with pa.ipc.open_file(file) as reader:
            table = reader.read_all()
    assert table["item_id"].to_pylist() == list(TEXT)
    assert table["text"].to_pylist() == [pytest.approx(values) for values in TEXT.values()]
    assert [entry.name for entry in tmp_path.iterdir() if "partial" in entry.name] == []


def test_export_refuses_a_name_it_cannot_write(cli: Cli, filled: dmesr.Client):
    for name in ("vectors.txt", "no/such/folder.npz"):
        called = cli("embeddings", "export", "--recipe", "mine", "--output", name)
        assert called.code == 2
        assert len(called.err.splitlines()) == 1


def test_the_life_of_a_model(cli: Cli, folder: Path, write: Callable[..., Path], filled: dmesr.Client):
    empty = cli("models", "list", "--json")
    assert (empty.code, empty.json) == (0, [])
    first = cli("models", "publish", folder, "--name", "tiny", "--promote", "production", "--json")
    assert first.code == 0, first.err
    assert (first.json["state"], first.json["aliases"]) == ("READY", ["production"])
    assert first.json["items_adapted"] == 5
    assert cli("models", "publish", folder, "--name", "tiny", "--json").json["version"] == 1, "the same is the same"
    other = write("other", {**COUNTS, "a": 6})
    assert cli("models", "publish", other, "--name", "tiny").err == "tiny:2: ready, 5 items adapted\n"
    assert [row["version"] for row in cli("models", "list", "--json").json] == [2, 1]
    assert cli("models", "promote", "tiny:2").err == "production is tiny:2\n"
    assert cli("models", "rollback").err == "production is tiny:1 again\n"
    assert "tiny:1" in cli("models", "show").out
    assert cli("models", "show", "tiny:2", "--json").json["manifest"]["method"] == "tiny"
    assert "[MODEL_IN_USE]" in cli("models", "delete", "tiny:1", "--yes").err
    assert cli("models", "delete", "tiny:2").code == 2
    assert cli("models", "delete", "tiny:2", "--yes").err == "deleted tiny:2\n"
    assert "[MODEL_NOT_FOUND]" in cli("models", "show", "tiny:2").err
    assert cli("embeddings", "export", "--model", "tiny:1", "-o", "v.npz", "--json").json["present"] == {"vector": 5}
    filled.embeddings.write(
        recipe="mine", source="text", item_ids=["a", "f"], vectors=np.ones((2, 3), "f4"), create_recipe=False
    )
    shown = cli("models", "show", "tiny:1").out
    assert "of 6 with vectors 1 are new and 1 changed, and of 5 from then 0 are gone" in shown
    assert "rolled back to it" in shown
    assert "promoted away from it" in shown
    moves = cli("models", "show", "tiny:1", "--json").json["lineage"]["moves"]
    assert [(move["action"], move["model"], move["actor"]) for move in moves] == [
        ("PROMOTED", "tiny:1", "anonymous"),
        ("PROMOTED", "tiny:2", "anonymous"),
        ("ROLLED_BACK", "tiny:1", "anonymous"),
    ]


def test_an_artefact_with_a_wrong_checksum_is_refused(cli: Cli, folder: Path):
    (folder / "items.arrow").write_bytes(b"something else")
    refused = cli("models", "publish", folder, "--name", "tiny")
    assert refused.code == 1
    assert "[INVALID_ARTEFACT]" in refused.err


def test_recommend(cli: Cli, folder: Path, vectors: dict[str, np.ndarray], tiny_artefact: ModuleType):
    cli("models", "publish", folder, "--name", "tiny", "--promote", "production")
    answer = cli("recommend", "a", "nobody", "-k", "3", "--json").json
    user = tiny_artefact.user_vector([vectors["a"]])
    scores = {name: float(user @ vector) for name, vector in vectors.items() if name != "a"}
    best = sorted(scores, key=lambda name: -scores[name])[:3]
    assert [one["item_id"] for one in answer["recommendations"]] == best
    assert answer["model"] == "tiny:1"
    assert answer["strategy"] == "MODEL"
    assert answer["unknown_item_ids"] == ["nobody"]
    first = answer["recommendations"][0]
    assert first["score"] == pytest.approx(scores[best[0]], abs=1e-5)
    assert sum(first["shares"].values()) == pytest.approx(first["score"], abs=1e-5)
    assert {one["item_id"] for one in answer["recommendations"] if one["is_new"]} == {"e"} & set(best)

    table = cli("recommend", "a", "-k", "5", "--include-seen", "--deny", "b", "--attribute", "kind")
    heading, *rows, model = table.out.splitlines()
    assert heading.split() == ["item", "title", "kind", "score", "coarse", "fine", "bias", "new"]
    assert {row.split()[1] for row in rows} == {"a", "c", "d", "e"}
    assert "Title a" in table.out
    assert model == "model tiny:1, alias production"
    assert [one["item_id"] for one in cli("recommend", "a", "--allow", "c", "--json").json["recommendations"]] == ["c"]

    popular = cli("recommend")
    assert "popular items" in popular.err
    assert [row.split()[1] for row in popular.out.splitlines()[1:5]] == ["a", "b", "c", "d"]


def test_recommend_by_filter_and_by_the_item_looked_at(cli: Cli, folder: Path):
    cli("models", "publish", folder, "--name", "tiny", "--promote", "production")
    found = cli("recommend", "a", "--filter", 'title in ["Title c", "Title d"]', "--json").json
    assert {one["item_id"] for one in found["recommendations"]} == {"c", "d"}
    wrong = cli("recommend", "a", "--filter", "title in [")
    assert (wrong.code, "[INVALID_FILTER]" in wrong.err) == (1, True)
    near = cli("recommend", "--similar-to", "a", "--json").json
    assert near["strategy"] == "SIMILAR"
    assert "a" not in {one["item_id"] for one in near["recommendations"]}
    assert "near to the one given" in cli("recommend", "--similar-to", "a").err


def test_two_aliases_share_the_calls(cli: Cli, folder: Path, write: Callable[..., Path]):
    cli("models", "publish", folder, "--name", "tiny", "--promote", "production")
    cli("models", "publish", write("other", {**COUNTS, "a": 6}), "--name", "tiny", "--promote", "candidate")
    assert cli("models", "split", "candidate", "--share", "1").err == "production: 1 of its calls go to candidate\n"
    answer = cli("recommend", "a", "--unit", "u1", "--json").json
    assert (answer["alias"], answer["model"]) == ("candidate", "tiny:2")
    listed = cli("models", "aliases", "--json").json
    assert [(one["name"], one["model"]) for one in listed] == [("candidate", "tiny:2"), ("production", "tiny:1")]
    assert listed[1]["split"]["share"] == 1
    assert "1 of its calls go to candidate" in cli("models", "aliases").out
    assert cli("models", "split", "--share", "0").err == "production: answers all of its calls\n"
    assert cli("models", "split", "--share", "0.5").code == 2
    assert "[ALIAS_NOT_FOUND]" in cli("models", "split", "nobody", "--share", "0.5").err


def test_recommend_without_a_model_says_so(cli: Cli, filled: dmesr.Client):
    called = cli("recommend", "a")
    assert called.code == 1
    assert "[MODEL_NOT_FOUND]" in called.err


def test_evaluate_agrees_with_a_ranking_by_hand(
    cli: Cli, folder: Path, tmp_path: Path, vectors: dict[str, np.ndarray], tiny_artefact: ModuleType
):
    cli("models", "publish", folder, "--name", "tiny", "--promote", "production")
    users = {
        "u1": ["a", "c", "b"],
        "u2": ["c", "d"],
        "u3": ["b", "zz", "d"],  # "zz" is unknown
        "u4": ["a", "b", "a"],  # the hidden item was seen before
        "u5": ["c", "nowhere"],  # the hidden item is not in the catalog
        "u6": ["a"],  # nothing to hide
    }
    rows = [(user, item, time) for user, items in users.items() for time, item in enumerate(items)]
    (tmp_path / "events.csv").write_text(
        "who,what,when\n" + "".join(f"{user},{item},{time}\n" for user, item, time in reversed(rows)) + "u7,,3\n"
    )
    k = 2
    gains = []
    for items in users.values():
        if len(items) < 2:
            continue
        *history, target = items
        user = tiny_artefact.user_vector([vectors[item] for item in history if item in vectors])
        candidates = [name for name in vectors if name == target or name not in history]
        ranked = sorted(candidates, key=lambda name: -float(user @ vectors[name]))
        rank = ranked.index(target) + 1 if target in ranked else None
        gains.append(1 / math.log2(1 + rank) if rank is not None and rank <= k else 0.0)
    hits = [float(gain > 0) for gain in gains]
    assert 0 < sum(hits) < 5, "a test that could not fail"

    called = cli(
        *("evaluate", "events.csv", "--user", "who", "--item", "what", "--time", "when", "-k", k, "--json"),
    )
    assert called.code == 0, called.err
    result = called.json
    assert result["scores"]["hit_rate"] == pytest.approx(np.mean(hits))
    assert result["scores"]["ndcg"] == pytest.approx(np.mean(gains))
    assert result["scores"]["hit_rate_se"] == pytest.approx(np.std(hits, ddof=1) / math.sqrt(5))
    assert result["scores"]["ndcg_se"] == pytest.approx(np.std(gains, ddof=1) / math.sqrt(5))
    # Counts of what is not hidden: a 3 (u1, u4, u6), c 3 (u1, u2, u5), b 2 (u3, u4). Ranks: u1 b 1st behind nobody
    # unseen; u2 d behind a, b and tied with e, f; u3 d likewise behind a, c; u4 a tied with c; u5 unknown.
    floor = [1.0, 0.0, 0.0, 1 / math.log2(3), 0.0]
    assert result["popularity"]["ndcg"] == pytest.approx(np.mean(floor))
    assert result["popularity"]["hit_rate"] == pytest.approx(2 / 5)
    assert {key: result[key] for key in ("users", "skipped_users", "repeat_users", "unknown_targets")} == {
        "users": 5,
        "skipped_users": 1,
        "repeat_users": 1,
        "unknown_targets": 1,
    }
    assert result["unknown_history_items"] == 1
    assert result["unusable_rows"] == 1
    assert result["catalog_items"] == 6
    shown = cli("evaluate", "events.csv", "--user", "who", "--item", "what", "--time", "when", "-k", k)
    assert "popularity" in shown.out
    assert "5 users" in shown.out
    assert "1 hidden ones are not in the catalog" in shown.out


def test_evaluate_needs_somebody_with_two_events(cli: Cli, folder: Path, tmp_path: Path):
    (tmp_path / "events.csv").write_text("user_id,item_id\nu,a\n")
    called = cli("evaluate", "events.csv")
    assert called.code == 1
    assert "two events" in called.err


def test_store_stats_and_server_info(cli: Cli, filled: dmesr.Client):
    tables = {row["name"]: row for row in cli("store", "stats", "--json").json["tables"]}
    assert tables["items"]["rows"] == 6
    assert "items" in cli("store", "stats").out
    info = cli("server", "info", "--json").json
    assert info["limits"]["max_k"] > 0
    assert f"dmesr server {info['version']}" in cli("server", "info").out


def test_doctor_sees_the_running_server(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    from dmesr.cli import doctor

    monkeypatch.setattr(doctor, "NATIVE", {})
    (check,) = (check for check in cli("doctor", "--json").json if check["name"] == "server")
    assert "answers at" in check["detail"]
