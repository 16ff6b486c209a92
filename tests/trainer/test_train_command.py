"""`dmesr-cli train` as a user calls it, against a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dmesr
import numpy as np
import pytest
from dmesr_trainer.datasets import load
from running_server import RunningServer

SMALL = ("--epochs", "1", "--device", "cpu", "--set", "dim=8", "--set", "backbone.max_history=8")


def _command(*args: str) -> list[str]:
    return [sys.executable, "-m", "dmesr.cli", "train", *args]


def _train(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*args), capture_output=True, text=True, timeout=300)


def test_trains_publishes_and_promotes(start_server: Callable[..., RunningServer], tmp_path: Path):
    server = start_server(enricher=False)
    rng = np.random.default_rng(0)
    items = list(load("sample").items())
    with dmesr.connect(server.address) as client:
        client.items.upsert(dmesr.Item(item.item_id, item.attributes) for item in items)
        for source in ("text", "original"):
            client.embeddings.write(
                recipe="made-up",
                source=source,
                item_ids=[item.item_id for item in items],
                vectors=rng.normal(size=(len(items), 16)).astype(np.float32),
                create_recipe=True,
            )
        output = tmp_path / "run"
        ran = _train(
            *("--server", server.address, "--recipe", "made-up", "--output", str(output), "--json"),
            *("--publish", "novels", "--promote", "production", *SMALL),
        )
        assert ran.returncode == 0, ran.stderr
        report = json.loads(ran.stdout)
        assert report["method"] == "dmesr"
        assert report["dataset"]["planted"]
        assert report["epochs"] == report["best_epoch"] == 1
        assert report["metrics"]["test"]["sampled"].keys() == {"hr@10", "ndcg@10"}
        assert report["model"]["ref"] == "novels:1"
        assert "epoch 1: loss recommend" in ran.stderr
        model = client.models.get("production")
        assert model.manifest["training"]["dataset"] == "sample"
        assert model.manifest["recipe_id"] == client.embeddings.recipes()[0].recipe_id
        assert model.items_adapted == len(items)
        # One that nobody has read can be recommended all the same.
        new = items[-1].item_id
        best = client.recommend(history=[items[0].item_id, items[1].item_id], k=3, allow=[new])
        assert [(one.item_id, one.is_new) for one in best] == [(new, True)]


def test_a_method_that_reads_nothing_needs_no_server(tmp_path: Path):
    ran = _train("--method", "popularity", "--output", str(tmp_path / "run"), "--server", "127.0.0.1:1")
    assert ran.returncode == 0, ran.stderr
    assert "HR@10" in ran.stdout
    assert "planted" in ran.stdout
    assert (tmp_path / "run/artefact/manifest.json").exists()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--method", "dmsr"), 2, "unknown method 'dmsr'"),
        (("--without", "posters"), 2, "what can be left out is"),
        (("--set", "optimiser.speed=3"), 2, "unknown setting 'optimiser.speed'"),
        (("--set", "dim"), 2, "PART.FIELD=VALUE"),
        (("--promote", "production"), 2, "--promote needs --publish"),
        (("--dataset", "movielens"), 1, "needs --data"),
        (("--server", "127.0.0.1:1"), 1, "no server listens"),
        (("--method", "none", "--device", "tpu"), 1, "unknown device 'tpu'"),
        (("--method", "none", "--backbone", "gru5rec"), 2, "choose one of sasrec, gru4rec, bert4rec"),
        (("--set", "optimiser.epochs=ten"), 2, "optimiser.epochs is 'ten'; it must be a whole number"),
        (("--config", "missing.toml"), 2, "missing.toml cannot be read"),
        (("--resume", "missing"), 2, "leave out --output"),
    ],
)
def test_what_is_wrong_is_one_line(args: tuple[str, ...], code: int, message: str, tmp_path: Path):
    ran = _train("--output", str(tmp_path / "run"), *args)
    assert ran.returncode == code
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in ran.stderr


def test_ctrl_c_keeps_the_best_so_far(tmp_path: Path):
    run = tmp_path / "run"
    command = _command("--method", "none", "--output", str(run), "--epochs", "100000", "--patience", "100000", "--json")
    process = subprocess.Popen(
        [*command, *SMALL[2:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (run / "best.safetensors").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    report = json.loads(stdout)
    assert report["interrupted"]
    assert report["best_epoch"] >= 1
    assert "interrupted: epoch" in stderr
    assert (run / "artefact/manifest.json").exists()


def test_settings_come_from_a_file_and_flags_go_over_them(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text(
        'method = "none"\ndim = 8\n[data]\ndataset = "sample"\n[backbone]\nname = "gru4rec"\nmax_history = 8\n'
        "[optimiser]\nepochs = 3\nlearning_rate = 0.01\n"
    )
    ran = _train("--config", str(file), "--epochs", "1", "--output", str(tmp_path / "run"), "--json")
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert (report["method"], report["backbone"], report["epochs"]) == ("none", "gru4rec", 1)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["dim"], config["optimiser"]["learning_rate"]) == (8, 0.01)
    assert config["backbone"]["layers"] == 1  # what the file leaves out is the preset of its method and backbone
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["seed"] == 0
    assert facts["versions"]["torch"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dim = ", "is no TOML"),
        ('[optimiser]\nepochs = "many"', "optimiser.epochs is 'many'; it must be a whole number"),
        ("[optimiser]\nspeed = 3", "unknown setting 'optimiser.speed'"),
        ('backbone = "gru4rec"', "backbone is 'gru4rec'; it must be a table of settings"),
        ("[data]\nposter = 3", "unknown setting 'data.poster'"),
        ('[loss]\nname = "hinge"', "loss.name is 'hinge'; it must be one of softmax, bce"),
        ("seed = true", "seed is True; it must be a whole number"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(text: str, message: str, tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text(text)
    ran = _train("--config", str(file), "--method", "none", "--output", str(tmp_path / "run"))
    assert ran.returncode == 2
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_killed_run_goes_on_with_the_same_figures(tmp_path: Path):
    """SIGKILL at two moments; then the same command, then --resume: the figures are those of a run left alone."""
    settings = ("--method", "none", "--backbone", "bert4rec", *SMALL[2:], "--epochs", "8", "--device", "cpu")

    def begin(*args: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(_command(*args), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill_after(epochs: int, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if lines.exists() and lines.read_text().count("\n") >= epochs:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)

    whole, run = tmp_path / "whole", tmp_path / "run"
    lines = run / "metrics.jsonl"
    left_alone = begin(*settings, "--output", str(whole))
    kill_after(2, begin(*settings, "--output", str(run)))
    kill_after(4, begin(*settings, "--output", str(run)))
    resumed = _train("--resume", str(run), "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert left_alone.wait(timeout=120) == 0
    expected, got = (json.loads((folder / "result.json").read_text()) for folder in (whole, run))
    for name in ("metrics", "best_epoch", "epochs"):
        assert got[name] == expected[name]
    by_epoch = [
        [
            {name: value for name, value in json.loads(line).items() if name != "seconds"}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (whole, run)
    ]
    assert by_epoch[0] == by_epoch[1]
    assert (run / "artefact/manifest.json").exists()
    other = _train(*settings, "--output", str(run), "--set", "dim=16")
    assert other.returncode == 1
    assert "holds another run: dim was 8, now 16" in other.stderr


def test_the_leaky_switch_says_what_it_is(tmp_path: Path):
    ran = _train("--method", "none", *SMALL, "--leaky-cross-attention", "--output", str(tmp_path / "run"))
    assert ran.returncode == 0, ran.stderr
    assert "positions see their own labels" in ran.stderr
    assert json.loads((tmp_path / "run/config.json").read_text())["fusion"]["leaky"]
