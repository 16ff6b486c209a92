"""`dmesr-cli demo` as people run it: a real server, real training, on a small shop of the test's own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import typer
from dmesr_trainer.cli.demo import demo
from dmesr_trainer.datasets.covers import COMPOSITIONS, PALETTES, CoverStyle, draw_cover
from typer.testing import CliRunner

GAMES = 36
NEW_GAME = "game-36"
# Whoever runs the demonstration may have a server, a token or a catalog of their own in the environment.
ELSEWHERE = {"DMESR_SERVER_ADDRESS": "127.0.0.1:1", "DMESR_TOKEN": "secret", "DMESR_SERVER__PORT": "1"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Board games of three kinds, three of four with a picture; players stay with a kind. One game is new."""
    folder = tmp_path_factory.mktemp("shop")
    kinds = ("farming in the valley", "pirates at sea", "trains and tracks")
    with (folder / "items.jsonl").open("w") as file:
        for number in range(GAMES + 1):
            picture = f"{number}.png" if number % 4 else None
            if picture:
                style = CoverStyle(PALETTES[number % 3], COMPOSITIONS[number % 4])
                (folder / picture).write_bytes(draw_cover(style=style, title="A Game", author="A Hand", seed=number))
            row = {"item_id": f"game-{number}", "title": f"Game {number}", "category": kinds[number % 3]}
            file.write(json.dumps(row | {"picture": picture}) + "\n")
    rng = np.random.default_rng(3)
    events = [
        f"player-{player},game-{game},{step}"
        for player in range(40)
        for step, game in enumerate(rng.permutation(np.arange(player % 3, GAMES, 3))[:6])
    ]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,position", *events]))
    return folder


def _demo(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dmesr.cli", "demo", *(str(argument) for argument in arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def _run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    with _demo(*arguments, **environment) as process:
        stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def first(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("demo-data")
    files = ("--dataset", "files", "--data", shop, "--picture-column", "picture", "--domain", "board game")
    done = _run(*files, "--folder", folder, "--epochs", 3, "--json", **ELSEWHERE)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def _listens(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_the_whole_job(first: tuple[Path, dict]):
    _, report = first
    assert report["dataset"]["users"] == 40
    assert (report["catalogue"]["items"], report["catalogue"]["with_picture"]) == (37, 27)
    assert {row["source"]: row["items"] for row in report["coverage"]} == {
        "original": 37,
        "text": 37,
        "image": 27,
        "hybrid": 27,
    }
    assert set(report["descriptions"]["texts"]) == {"original", "text", "image", "hybrid"}
    assert report["describer"] == {"name": "palette", "is_mllm": False}
    assert set(report["metrics"]) == {"popularity", "none", "dmesr"}
    assert all(0 <= value <= 1 for figures in report["metrics"]["dmesr"].values() for value in figures.values())
    assert report["model"] == {"ref": "dmesr:1", "items_adapted": 37}
    one, other = report["recommendations"]
    assert len(one["items"]) == len(other["items"]) == 10
    assert one["user_id"] != other["user_id"]
    for shown in one["items"]:
        assert shown["item"]["about"]
        assert sum(shown["shares"].values()) == pytest.approx(shown["score"], abs=1e-4)
    seen = {item["item_id"] for item in one["history"]}
    assert seen.isdisjoint(shown["item"]["item_id"] for shown in one["items"])


def test_a_new_item_is_recommended(first: tuple[Path, dict]):
    _, report = first
    assert report["new_item"]["item"]["item_id"] == NEW_GAME
    assert report["new_item"]["inserted"] is False
    assert report["new_item"]["rank"] >= 1


def test_the_server_is_gone_afterwards(first: tuple[Path, dict]):
    folder, _ = first
    assert not (folder / "files/server.address").exists()
    told = (folder / "files/server.log").read_text()
    listening = told.split("listening on ")[1].split()[0]
    assert not _listens(listening)


def test_a_second_run_enriches_nothing_again(first: tuple[Path, dict], shop: Path):
    folder, _ = first
    files = ("--dataset", "files", "--data", shop, "--picture-column", "picture", "--domain", "board game")
    again = _run(*files, "--folder", folder, "--epochs", 1, "--no-keep")
    assert again.returncode == 0, again.stderr
    assert "37 items, 27 with pictures (0 inserted, 0 updated, 37 unchanged, 0 rejected)" in again.stdout
    coverage = again.stdout.split("Coverage of each route")[1].split("What the routes say")[0]
    rows = {line.split()[0]: line.split()[1:] for line in coverage.splitlines()[2:] if line}
    assert rows == {
        "original": ["37", "100.0%", "0", "0", "0"],
        "text": ["37", "100.0%", "0", "0", "0"],
        "image": ["27", "73.0%", "0", "0", "0"],
        "hybrid": ["27", "73.0%", "0", "0", "0"],
    }
    for word in ("popularity", "none", "dmesr", "NDCG@10", "coarse", "fine", "A new item", "no multimodal LLM"):
        assert word in again.stdout
    assert not (folder / "files").exists()


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_ended_demonstration_leaves_no_server(sent: signal.Signals, status: int, tmp_path: Path):
    with _demo("--folder", tmp_path) as process:
        address = tmp_path / "sample/server.address"
        deadline = time.monotonic() + 90
        while not (address.exists() and address.read_text().strip()):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.1)
        listening = address.read_text().strip()
        assert _listens(listening)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in stderr
    _gone, alive = psutil.wait_procs(children, timeout=15)
    assert not alive
    assert not _listens(listening)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--dataset", "movielens"), "needs --data"),
        (("--dataset", "movielens", "--data", "nowhere"), "movies.csv is missing; fetch it with"),
        (("--dataset", "netflix"), "unknown dataset 'netflix'"),
        (("--folder", "/dev/null/demo"), "name another place with --folder"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: tuple[str, ...], complaint: str):
    app = typer.Typer()
    app.command()(demo)
    failed = CliRunner().invoke(app, list(arguments))
    assert failed.exit_code == 1
    assert complaint in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
