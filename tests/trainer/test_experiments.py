"""`dmesr-cli experiment` as a user calls it: tiny experiments on the sample, from the cells to the tables."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import dmesr
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from dmesr.cli import main
from dmesr_trainer import metrics
from dmesr_trainer.datasets import load
from running_server import RunningServer
from scipy import stats

SMALL = ("--budget", "2", "--backbones", "sasrec", "--device", "cpu")
TINY = ("--set", "dim=8", "--set", "backbone.max_history=8", "--set", "backbone.layers=1", "--set", "fusion.heads=1")
NOBODY = ("--server", "127.0.0.1:1")

ROW = {
    *("backbone", "method", "metric", "mean", "std", "ci_low", "ci_high", "seeds", "users"),
    *("p_value", "p_holm", "against", "comparisons", "paper", "paper_source", "group", "role"),
}
WHOLE = {
    *("schema", "experiment", "title", "dataset", "vectors", "is_mllm", "budget", "evaluation", "confidence"),
    *("command", "notes", "rows", "failures", "missing_cells", "code", "versions"),
}


def _command(*args: str) -> list[str]:
    return [sys.executable, "-m", "dmesr.cli", "experiment", *args]


def _call(*args: str) -> tuple[int, str]:
    """The exit status, and what the command says on stderr. In this process, which has imported everything."""
    said = io.StringIO()
    arguments = ["experiment", *args]
    with (
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(sys, "argv", ["dmesr-cli", *arguments]),
    ):
        code = main(arguments)
    return code, said.getvalue()


def _run(*args: str, cells: Path, output: Path, code: int = 0) -> str:
    """What a small experiment says on stderr."""
    ended, said = _call(*args, *SMALL, *TINY, "--cells", str(cells), "--output", str(output))
    assert ended == code, said
    return said


def _finished(cells: Path) -> dict[str, int]:
    """When each finished cell was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (cells / "cells").glob("*/result.json")}


def _results(output: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    return results


@pytest.fixture(scope="module")
def table2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The cells and the output of a small table2, whose server has gone since."""
    folder = tmp_path_factory.mktemp("table2")
    cells, output = folder / "cells", folder / "table2"
    rng = np.random.default_rng(0)
    items = sorted(set(load("sample").interactions().item_ids.tolist()))
    server = RunningServer(folder / "server", enricher=False).start()
    try:
        with dmesr.connect(server.address) as client:
            client.items.upsert(dmesr.Item(item, {"title": item}) for item in items)
            for recipe in ("first", "second"):
                for source in ("text", "image", "original"):
                    client.embeddings.write(
                        recipe=recipe,
                        source=source,
                        item_ids=items,
                        vectors=rng.normal(size=(len(items), 8)).astype(np.float32),
                        create_recipe=True,
                    )
        said = _run(
            *("table2", "--methods", "popularity,none,dmesr", "--seeds", "2", "--recipe", "first"),
            *("--server", server.address),
            cells=cells,
            output=output,
        )
        assert "read from the server and kept" in said
        # So that `mllms` finds it kept.
        _run(
            "mllms",
            "--recipes",
            "second",
            "--only-report",
            "--server",
            server.address,
            cells=cells,
            output=folder / "m",
        )
    finally:
        server.stop()
    return cells, output


def test_a_table_is_what_its_ranks_say(table2: tuple[Path, Path]):
    _, output = table2
    results = _results(output)
    assert results.keys() == WHOLE
    assert results["experiment"] == "table2"
    assert results["title"] == "Table 2 on sample (vectors that a client wrote)"
    assert results["dataset"]["planted"]
    assert not results["is_mllm"]
    assert results["vectors"][0]["coverage"]["text"] > 300
    assert results["missing_cells"] == 0
    assert results["failures"] == []
    assert "--cells" not in results["command"]
    ranks = pq.read_table(output / "ranks.parquet")
    columns = {name: np.array(ranks[name].to_pylist()) for name in ranks.column_names}
    methods = {row["method"] for row in results["rows"]}
    assert methods == {"popularity", "none", "dmesr"}
    values: dict[tuple[str, str], np.ndarray] = {}
    for row in results["rows"]:
        assert row.keys() == ROW
        of = metrics.hit_rates if "hr@" in row["metric"] else metrics.ndcgs
        kind = "full_rank" if row["metric"].startswith("full_") else "sampled_rank"
        by_seed = np.stack(
            [
                of(columns[kind][(columns["method"] == row["method"]) & (columns["seed"] == seed)])
                for seed in row["seeds"]
            ]
        )
        values[row["method"], row["metric"]] = by_seed.mean(axis=0)
        assert row["mean"] == pytest.approx(by_seed.mean())
        assert row["ci_low"] < row["mean"] < row["ci_high"]
        assert row["seeds"] == ([0] if row["method"] == "popularity" else [0, 1])
        assert row["users"] == 1500
        assert row["paper"] is None  # of MovieLens, Yelp and Amazon alone
    for row in results["rows"]:
        if row["against"]:
            pair = values[row["method"], row["metric"]], values[row["against"], row["metric"]]
            assert row["p_value"] == pytest.approx(stats.ttest_rel(*pair).pvalue)
            assert row["p_holm"] >= row["p_value"]
    assert {row["against"] for row in results["rows"] if row["method"] == "dmesr"} <= {"none", "popularity"}


def test_what_stands_beside_the_numbers(table2: tuple[Path, Path]):
    _, output = table2
    text = (output / "table.md").read_text()
    assert text.startswith("# Table 2 on sample (vectors that a client wrote)\n")
    assert "| sasrec | dmesr |" in text
    assert "planted" in text
    assert "dmesr-cli serve --describer vllm" in text
    assert (output / "figure.png").read_bytes()[:4] == b"\x89PNG"
    runs = pq.read_table(output / "runs.parquet")
    assert runs.num_rows == 5
    assert {"seed", "cell", "best_epoch", "seconds", "test_sampled_ndcg@10", "valid_sampled_ndcg@10"} <= set(
        runs.column_names
    )


def test_what_is_finished_is_not_run_again_and_needs_no_server(table2: tuple[Path, Path], tmp_path: Path):
    cells, output = table2
    before = _finished(cells)
    again = tmp_path / "again"
    said = _run(
        *("table2", "--methods", "popularity,none,dmesr", "--seeds", "2", "--recipe", "first", *NOBODY),
        cells=cells,
        output=again,
    )
    assert "the server was not asked" in said
    assert _finished(cells) == before
    assert _results(again)["rows"] == _results(output)["rows"]


def test_long_tail_and_new_items(table2: tuple[Path, Path], tmp_path: Path):
    cells, _ = table2
    before = _finished(cells)
    _run(
        *("longtail", "--methods", "none,dmesr", "--seeds", "2", "--recipe", "first", *NOBODY),
        *("--new-item-folds", "2", "--new-item-epochs", "1"),
        cells=cells,
        output=tmp_path,
    )
    # The long tail itself cost nothing: two folds of two methods at one seed.
    assert len(_finished(cells)) == len(before) + 4
    results = _results(tmp_path)
    assert {line["epochs"] for line in pq.read_table(tmp_path / "runs.parquet").to_pylist()} == {1, 2}
    assert any("The runs for new items had 1 epochs at most" in note for note in results["notes"])
    rows = {(row["group"], row["method"]): row for row in results["rows"] if row["metric"] == "hr@10"}
    assert rows["long tail", "dmesr"]["users"] + rows["head", "dmesr"]["users"] == 1500
    new = {method: row for (group, method), row in rows.items() if group == "new items"}
    assert new.keys() == {"none", "dmesr", "nearest-last", "nearest-last-white", "nearest-recent-white"}
    assert new["none"]["mean"] == 0.0
    assert new["dmesr"]["mean"] > 0.0
    assert new["dmesr"]["against"].startswith("nearest")
    ranks = pq.read_table(tmp_path / "ranks.parquet")
    assert set(ranks["group"].to_pylist()) == {"all", "new items"}
    assert (tmp_path / "figure.png").exists()


def test_what_an_earlier_experiment_tells_of_is_not_run_again(table2: tuple[Path, Path], tmp_path: Path):
    kept, output = table2
    vectors = tmp_path / "cells/vectors"
    shutil.copytree(kept / "vectors", vectors)  # as if they had been read from the server again
    arguments = ("--methods", "popularity,none,dmesr", "--recipe", "first", *NOBODY, "--runs-from", str(output))
    _run("table2", *arguments, "--seeds", "3", "--only-report", cells=tmp_path / "cells", output=tmp_path / "again")
    earlier, again = _results(output), _results(tmp_path / "again")
    assert again["missing_cells"] == 2  # the third seed of two methods
    assert again["rows"] == earlier["rows"]
    assert (again["code"], again["versions"]) == (earlier["code"], earlier["versions"])
    assert any("not run again: taken from the runs of table2" in note for note in again["notes"])
    assert pq.read_table(tmp_path / "again/ranks.parquet").equals(pq.read_table(output / "ranks.parquet"))
    assert pq.read_table(tmp_path / "again/runs.parquet").equals(pq.read_table(output / "runs.parquet"))
    # Of other settings or other data nothing is taken.
    for place, other in enumerate((("--set", "dmesr:ids.dropout=0.3"), ("--only-with-picture",))):
        folder = tmp_path / f"other-{place}"
        shutil.copytree(kept / "vectors", folder / "vectors")
        _run("table2", *arguments, *other, "--seeds", "2", "--only-report", cells=folder, output=folder / "out")
        there = {row["method"] for row in _results(folder / "out")["rows"]}
        assert there == ({"popularity", "none"} if place == 0 else set())


def test_sweep_and_search(table2: tuple[Path, Path], tmp_path: Path):
    cells, _ = table2
    space = tmp_path / "space.json"
    space.write_text(json.dumps({"shared": {"optimiser.batch_size": [256]}}))
    arguments = (
        *("sweep", "--methods", "popularity,none,ease,dmesr", "--grid", "alpha", "--search", "2", "--seeds", "1"),
        *("--space", str(space), "--recipe", "first", "--set", "loss.candidates=64", *NOBODY),
    )
    _run(*arguments, cells=cells, output=tmp_path / "one")
    before = _finished(cells)
    results = _results(tmp_path / "one")
    searched = {one["method"]: one for one in results["searches"]}
    assert searched.keys() == {"none", "ease", "dmesr"}  # popularity has nothing to choose
    for search in searched.values():
        assert [trial["number"] for trial in search["trials"]] == [0, 1]
        values = [trial["valid"] for trial in search["trials"]]
        assert search["trials"][search["best"]]["valid"] == max(values)
        assert "test" not in json.dumps(search)
    methods = [row["method"] for row in results["rows"] if row["metric"] == "hr@10"]
    assert {"dmesr α=0", "dmesr α=0.01", "dmesr α=1", "dmesr searched", "none searched", "ease searched"} <= set(
        methods
    )
    assert {row["method"] for row in results["validation"]} == set(methods)
    # The same search again asks for the same trials.
    _run(*arguments, cells=cells, output=tmp_path / "two")
    assert _finished(cells) == before
    assert _results(tmp_path / "two")["searches"] == results["searches"]
    # On another machine they are told by the folder; a longer search goes on from there.
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(cells / "vectors", elsewhere / "vectors")
    longer = (*arguments, "--search", "3")  # the later of two counts
    _run(*longer, "--runs-from", str(tmp_path / "one"), "--only-report", cells=elsewhere, output=tmp_path / "three")
    taken = set()
    for search in _results(tmp_path / "three")["searches"]:
        *told, last = search["trials"]
        taken |= {trial.pop("taken_from") for trial in told}
        first = searched[search["method"]]["trials"]
        assert told == [{name: trial[name] for name in trial if name != "taken_from"} for trial in first]
        assert (last["valid"], last["problem"]) == (None, "not run")
    assert taken == {"", "one"}  # what a row of the table tells of is a finished cell


def test_describers_and_ablations(table2: tuple[Path, Path], tmp_path: Path):
    cells, _ = table2
    before = _finished(cells)
    _run("mllms", "--recipes", "first,second", "--seeds", "1", *NOBODY, cells=cells, output=tmp_path / "mllms")
    assert len(_finished(cells)) == len(before) + 1  # `table2` ran the rest
    results = _results(tmp_path / "mllms")
    assert [one["recipe"] for one in results["vectors"]] == ["first", "second"]
    rows = {row["method"]: row for row in results["rows"] if row["metric"] == "ndcg@10"}
    assert rows["dmesr on second"]["against"] == "dmesr on first"
    assert rows["dmesr on first"]["comparisons"]["none"]["against"] == "none"
    _run(
        *("ablation", "--groups", "parts,forms", "--seeds", "1", "--recipe", "first", *NOBODY),
        cells=cells,
        output=tmp_path / "ablation",
    )
    results = _results(tmp_path / "ablation")
    changed = {one["method"]: one["changed"] for one in results["variants"]}
    assert changed["w/o CA (cross-attention)"] == {"fusion.enabled": False}
    assert changed["gated cross-attention"] == {"fusion.gate": True}
    assert [row["method"] for row in results["validation"]] == list(changed)
    assert all(row["against"] == "dmesr" for row in results["rows"] if row["method"] != "dmesr")
    assert "Ablations of DMESR on sample" in (tmp_path / "ablation/table.md").read_text()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_it_goes_on_where_it_was(ending: signal.Signals, tmp_path: Path):
    cells, output = tmp_path / "cells", tmp_path / "output"
    arguments = ("table2", "--methods", "none", "--seeds", "3", *NOBODY)
    _run(*arguments, "--only-report", cells=cells, output=output)  # makes the cells and runs none
    last = next(
        path.parent
        for path in (cells / "cells").glob("*/cell.json")
        if json.loads(path.read_text())["config"]["seed"] == 2
    )
    command = _command(*arguments, *SMALL, *TINY, "--cells", str(cells), "--output", str(output))
    # As if another experiment were at the last cell: however slow this test is, it meets an experiment that still runs.
    with (last / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            while not _finished(cells) and process.poll() is None:
                time.sleep(0.01)
            workers = psutil.Process(process.pid).children()
            process.send_signal(ending)
            try:
                _, error = process.communicate(timeout=120)
            finally:
                process.kill()  # where it heard nothing: its end is waited for below
    assert process.returncode == (130 if ending == signal.SIGINT else -signal.SIGKILL), error
    _, alive = psutil.wait_procs(workers, timeout=300)
    assert not alive  # no orphan goes on
    before = _finished(cells)
    assert 1 <= len(before) < 3
    _run(*arguments, cells=cells, output=output)
    after = _finished(cells)
    assert len(after) == 3
    assert {name: after[name] for name in before} == before
    assert _results(output)["rows"][0]["seeds"] == [0, 1, 2]


def test_a_limit_of_time_and_a_look_before_the_end(tmp_path: Path):
    arguments = ("table2", "--methods", "none", "--minutes", "0.0001", *NOBODY)
    cells, output = tmp_path / "cells", tmp_path / "output"
    _run(*arguments, "--seeds", "1", cells=cells, output=output)
    assert any("1 of 1 runs were ended by the limit" in note for note in _results(output)["notes"])
    assert pq.read_table(output / "runs.parquet")["epochs"].to_pylist() == [1]
    _run(*arguments, "--seeds", "3", "--only-report", cells=cells, output=output)
    results = _results(output)
    assert results["missing_cells"] == 2
    assert results["rows"][0]["seeds"] == [0]
    assert len(_finished(cells)) == 1


def test_a_cell_that_fails_is_told_and_the_others_stand(tmp_path: Path):
    output = tmp_path / "output"
    said = _run(
        *("table2", "--methods", "popularity,none", "--seeds", "1", "--set", "none:ids.vectors=false", *NOBODY),
        cells=tmp_path / "cells",
        output=output,
        code=1,
    )
    assert "error: sasrec none seed 0: method 'none' knows items by their ids alone" in said
    assert "Traceback" not in said
    results = _results(output)
    assert [one["label"] for one in results["failures"]] == ["sasrec none seed 0"]
    assert {row["method"] for row in results["rows"]} == {"popularity"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--methods", "dmsr"), "unknown method 'dmsr'"),
        (("--methods", ""), "no method was named"),
        (("--backbones", "sasrek"), "unknown backbone 'sasrek'"),
        (("--dataset", "movielens"), "needs --data"),
        (("--methods", "none", "--set", "optimiser.speed=3"), "unknown setting 'optimiser.speed'"),
        (("--methods", "none", "--set", "evaluation.negatives=5000"), "that were not met"),
        (("--methods", "dmesr", *NOBODY), "no server listens"),
    ],
)
def test_what_is_wrong_is_one_line(args: tuple[str, ...], message: str, tmp_path: Path):
    places = ("--cells", str(tmp_path / "cells"), "--output", str(tmp_path / "output"))
    code, said = _call("table2", *places, *args)
    assert code == 1
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in said


def test_a_misspelt_group_is_told_before_a_server_is_asked(tmp_path: Path):
    code, said = _call("ablation", "--groups", "partz", "--output", str(tmp_path), *NOBODY)
    assert code == 1
    assert "unknown group of rows 'partz'; choose among parts, additions, steps, forms, leak" in said


def test_pictures_alone(tmp_path: Path):
    shop = tmp_path / "shop"
    shop.mkdir()
    # Of 40 items those with an even number have a picture.
    rows = [f"{item},Item {item},{'' if item % 2 else f'{item}.jpg'}" for item in range(40)]
    (shop / "items.csv").write_text("item_id,title,picture\n" + "\n".join(rows))
    met = [(user, (user + 3 * step) % 40, step) for user in range(12) for step in range(8)]
    events = [",".join(map(str, event)) for event in met]
    (shop / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(events))
    said = _run(
        *("table2", "--methods", "popularity", "--seeds", "1", "--only-with-picture", *NOBODY),
        *("--dataset", "files", "--data", str(shop), "--picture-column", "picture"),
        cells=tmp_path / "cells",
        output=tmp_path / "output",
    )
    assert "instead of 100" in said  # candidates
    results = _results(tmp_path / "output")
    assert results["title"] == "Table 2 on shop, items with a picture only (ids alone)"
    even = {item for _, item, _ in met if item % 2 == 0}
    assert results["dataset"]["items"] == len(even)
    assert results["evaluation"]["negatives"] == len(even) - 4  # of eight events every other one is left
    assert str(tmp_path) not in (tmp_path / "output/table.md").read_text()
    items = pq.read_table(tmp_path / "output/ranks.parquet")["item_id"].to_pylist()
    assert all(int(item) % 2 == 0 for item in items)
