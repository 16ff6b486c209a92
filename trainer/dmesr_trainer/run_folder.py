"""What a run leaves behind.

config.json              the settings
run.json                 id of the run, seed, commit of the code, versions, devices, what data it was
metrics.jsonl            a line an epoch
tensorboard/             the same for `tensorboard --logdir`
best.safetensors         the model at its best epoch
checkpoint.safetensors   all that the run needs to go on
result.json, result.md   the figures at the best epoch
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import load_file
from tensorboardX import SummaryWriter
from torch import nn

from dmesr_trainer import checkpoint
from dmesr_trainer.config import TrainConfig

if TYPE_CHECKING:
    from dmesr_trainer.training import EpochReport

# What may differ when a run goes on: how long it is, and where.
_MAY_CHANGE = ("device", "devices")
_OPTIMISER_MAY_CHANGE = ("epochs", "patience")
# A checkpoint may take this share of the time between two.
_CHECKPOINT_SHARE = 0.05


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        """Names it; nothing is written yet.

        Args:
            path: The folder.
        """
        self.path = path
        self.best, self.checkpoint = path / "best.safetensors", path / "checkpoint.safetensors"
        self._metrics = path / "metrics.jsonl"
        self._next_checkpoint = 0.0  # seconds on the monotonic clock

    def begin(self, config: TrainConfig, *, facts: dict[str, Any]) -> None:
        """Makes an empty run of it; files of an earlier one go.

        Args:
            config: The settings.
            facts: For run.json.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for stale in ("best.safetensors", "checkpoint.safetensors", "metrics.jsonl", "result.json", "result.md"):
            (self.path / stale).unlink(missing_ok=True)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
        self._write_start(config, facts=facts)

    def go_on(self, config: TrainConfig, *, facts: dict[str, Any]) -> checkpoint.Checkpoint | None:
        """Takes up the run that the folder holds.

        Args:
            config: The settings, which must be those of the run but for its length and its device.
            facts: For run.json; the data must be the same.

        Returns:
            The last checkpoint; None where the run was ended before its first.

        Raises:
            ValueError: The folder holds another run.
        """
        there = self.path / "config.json"
        if not there.exists():
            self.begin(config, facts=facts)
            return None
        self._check_same(config, facts=facts)
        found = checkpoint.read(self.checkpoint) if self.checkpoint.exists() else None
        if found is None:
            self.begin(config, facts=facts)
        else:
            self._write_start(config, facts=facts, run_id=self.told().get("run_id"))
        return found

    def told(self) -> dict[str, Any]:
        """What run.json says; empty where there is none, as in a folder whose files were cleared away."""
        path = self.path / "run.json"
        return _read_json(path) if path.exists() else {}

    def _write_start(self, config: TrainConfig, *, facts: dict[str, Any], run_id: str | None = None) -> None:
        told = {"run_id": run_id or uuid.uuid4().hex, "seed": config.seed, "commit": commit(), **facts}
        self.write_json("run.json", told)
        # Last: a folder with config.json holds a run that can be taken up, also after a kill right here.
        self.write_json("config.json", config.to_dict())

    def _check_same(self, config: TrainConfig, *, facts: dict[str, Any]) -> None:
        was, now = _read_json(self.path / "config.json"), config.to_dict()
        for settings in (was, now):
            for name in _MAY_CHANGE:
                settings.pop(name, None)
            for name in _OPTIMISER_MAY_CHANGE:
                settings["optimiser"].pop(name, None)
        told = [f"{name} was {before}, now {after}" for name, before, after in _differences(was, now)]
        data = _read_json(self.path / "run.json").get("data")
        if not told and data != facts["data"]:
            told = ["the interactions or the vectors are not those that it was started with"]
        if told:
            raise ValueError(
                f"the folder {self.path} holds another run: {'; '.join(told[:3])}. Go on with its own settings and "
                "data, or choose another folder"
            )

    def save_best(self, model: nn.Module, *, epoch: int) -> None:
        """Keeps the model of the best epoch so far."""
        checkpoint.write_tensors(self.best, model.state_dict(), metadata={"epoch": str(epoch)})

    def load_best(self, model: nn.Module) -> int:
        """Gives the model its best epoch's state.

        Returns:
            The epoch.
        """
        with safe_open(self.best, framework="pt") as file:
            epoch = int(file.metadata()["epoch"])
        model.load_state_dict(load_file(self.best))
        return epoch

    def checkpoint_is_due(self) -> bool:
        """Whether enough was trained since the last checkpoint for another to cost little beside it."""
        return time.monotonic() >= self._next_checkpoint

    def save_checkpoint(self, **parts: Any) -> None:
        """`checkpoint.write` in this folder."""
        started = time.monotonic()
        checkpoint.write(self.checkpoint, **parts)
        took = time.monotonic() - started
        self._next_checkpoint = time.monotonic() + took / _CHECKPOINT_SHARE

    def write_result(self, summary: dict[str, Any]) -> None:
        """Writes result.json and result.md.

        Args:
            summary: Plain values; "metrics" by split, kind and name.
        """
        self.write_json("result.json", summary)
        (self.path / "result.md").write_text(_table(summary), encoding="utf-8")

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Writes a JSON file in one move."""
        partial = self.path / f"{name}.partial"
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(self.path / name)


class Metrics:
    """Figures by epoch: metrics.jsonl and TensorBoard's events."""

    def __init__(self, folder: RunFolder, *, history: list[EpochReport]) -> None:
        """Opens both.

        Args:
            folder: Of the run.
            history: Epochs before a checkpoint; what came after it is done again.
        """
        self._lines = (folder.path / "metrics.jsonl").open("w", encoding="utf-8")
        self._events = SummaryWriter(str(folder.path / "tensorboard"), purge_step=len(history) + 1)
        for report in history:
            self._line(report)

    def add(self, report: EpochReport) -> None:
        """Writes one epoch."""
        self._line(report)
        values = {f"loss/{name}": value for name, value in report.losses.items()}
        for kind, figures in report.valid.items():
            values |= {f"valid_{kind}/{name}": value for name, value in figures.items()}
        values |= {"epoch/learning_rate": report.learning_rate, "epoch/seconds": report.seconds}
        for name, value in values.items():
            self._events.add_scalar(name.replace("@", "_at_"), value, report.epoch)
        self._events.flush()

    def close(self) -> None:
        """Closes both."""
        self._lines.close()
        self._events.close()

    def _line(self, report: EpochReport) -> None:
        self._lines.write(json.dumps(asdict(report)) + "\n")
        self._lines.flush()


def commit() -> str | None:
    """The commit of the code that trains, "-dirty" behind it where files were changed; None outside of a checkout."""
    package = Path(__file__).parent

    def git(*args: str) -> str | None:
        try:
            ran = subprocess.run(
                ["git", "-C", str(package), *args], capture_output=True, text=True, check=False, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return ran.stdout.strip() if ran.returncode == 0 else None

    # An installed package may lie inside of somebody's checkout; then that commit is not the code's.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")


def _differences(was: dict[str, Any], now: dict[str, Any], path: str = "") -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for name in {**was, **now}:
        before, after = was.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{path}{name}.")
        elif json.dumps(before) != json.dumps(after):
            found.append((path + name, before, after))
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}), so the run cannot go on; choose another folder") from None
    return read


def _table(summary: dict[str, Any]) -> str:
    metrics = summary["metrics"]
    columns = [(kind, name) for kind, figures in next(iter(metrics.values())).items() for name in figures]
    rows = [
        f"| {split} | " + " | ".join(f"{figures[kind][name]:.4f}" for kind, name in columns) + " |"
        for split, figures in metrics.items()
    ]
    title = " on ".join(name for name in (summary["method"], summary["backbone"]) if name)
    head = "| split | " + " | ".join(f"{kind} {name.upper()}" for kind, name in columns) + " |"
    rule = "|---|" + "---:|" * len(columns)
    return "\n".join([f"# {title}, epoch {summary['best_epoch']} of {summary['epochs']}", "", head, rule, *rows]) + "\n"
