"""A run that was ended goes on as if nothing had been; several processes train what one trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dmesr_trainer import run_folder
from dmesr_trainer.config import TrainConfig
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources
from dmesr_trainer.training import EpochReport, TrainResult, train
from made_up import make_sequences
from tensorboardX.proto.event_pb2 import Event

SETTINGS = {
    "dim": 8,
    "device": "cpu",
    "backbone__max_history": 6,
    "optimiser__epochs": 5,
    "optimiser__batch_size": 16,
    "evaluation__negatives": 20,
    "qarm__pretrain_epochs": 1,
    "qarm__rq_levels": 2,
    "qarm__vq_codes": 4,
}


class _EndedError(Exception):
    """The process is gone."""


def _config(method: str = "none", backbone: str = "sasrec", **changes: object) -> TrainConfig:
    return TrainConfig.preset(method, backbone=backbone, **{**SETTINGS, **changes})


def _end_after(epoch: int) -> Callable[[EpochReport], None]:
    def on_epoch(report: EpochReport) -> None:
        if report.epoch == epoch:
            raise _EndedError

    return on_epoch


def _learned(result: TrainResult) -> list[dict[str, Any]]:
    return [
        {"epoch": one.epoch, "losses": one.losses, "valid": one.valid, "rate": one.learning_rate, "best": one.is_best}
        for one in result.history
    ]


@pytest.mark.parametrize(
    ("method", "backbone", "changes"),
    [
        ("dmesr", "sasrec", {"optimiser__decay": "cosine", "optimiser__warmup_steps": 5}),
        ("dmesr-paper", "gru4rec", {}),  # negatives, the last windows
        ("none", "bert4rec", {}),  # hidden events
        ("qarm", "sasrec", {}),  # learns before the first epoch
    ],
)
def test_an_ended_run_goes_on_with_the_same_figures_and_weights(
    method: str, backbone: str, changes: dict[str, object], tmp_path: Path, sequences: Sequences, sources: Sources
):
    config = _config(method, backbone, **changes)
    data = {"config": config, "sequences": sequences, "sources": sources}
    whole = train(**data, output=tmp_path / "whole")
    for epoch in (2, 3):
        with pytest.raises(_EndedError):
            train(**data, output=tmp_path / "run", resume=True, on_epoch=_end_after(epoch))
    run_id = json.loads((tmp_path / "run/run.json").read_text())["run_id"]
    resumed = train(**data, output=tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run/run.json").read_text())["run_id"] == run_id
    assert _learned(resumed) == _learned(whole)
    assert (resumed.metrics, resumed.best_epoch) == (whole.metrics, whole.best_epoch)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]


def test_an_end_before_the_first_checkpoint_or_after_a_stale_one_changes_nothing(
    tmp_path: Path, sequences: Sequences, monkeypatch: pytest.MonkeyPatch
):
    data = {"config": _config(), "sequences": sequences, "sources": None}
    whole = train(**data, output=tmp_path / "whole")
    for due in ([False] * 9, [True, False, False, False]):
        answers = iter(due)
        monkeypatch.setattr(run_folder.RunFolder, "checkpoint_is_due", lambda _self, it=answers: next(it))
        output = tmp_path / str(due[0])
        with pytest.raises(_EndedError):
            train(**data, output=output, resume=True, on_epoch=_end_after(3))
        monkeypatch.undo()
        resumed = train(**data, output=output, resume=True)
        assert _learned(resumed) == _learned(whole)
        assert resumed.metrics == whole.metrics


def test_a_finished_run_is_not_trained_again_but_may_be_made_longer(tmp_path: Path, sequences: Sequences):
    data = {"sequences": sequences, "sources": None, "output": tmp_path / "run", "resume": True}
    # A rate that falls over the run's epochs would be another one in a longer run.
    steady = {"optimiser__decay": "none"}
    longer = train(**{**data, "output": tmp_path / "longer"}, config=_config(optimiser__epochs=7, **steady))
    first = train(**data, config=_config(**steady))
    told: list[int] = []
    again = train(**data, config=_config(**steady), on_epoch=lambda report: told.append(report.epoch))
    assert told == []
    assert again.metrics == first.metrics
    assert _learned(train(**data, config=_config(optimiser__epochs=7, **steady))) == _learned(longer)


def test_a_folder_with_another_run_is_refused(tmp_path: Path, sequences: Sequences):
    train(config=_config(), sequences=sequences, sources=None, output=tmp_path)
    again = {"sources": None, "output": tmp_path, "resume": True}
    with pytest.raises(ValueError, match=r"holds another run: dim was 8, now 16; optimiser\.batch_size was 16, now 8"):
        train(config=_config(dim=16, optimiser__batch_size=8), sequences=sequences, **again)
    other = make_sequences([1, 2, 3, 4], *[[3, 4, 5, 6]] * 9, n_items=60)
    with pytest.raises(ValueError, match="the interactions or the vectors are not those"):
        train(config=_config(), sequences=other, **again)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="delete it to train from the start"):
        train(config=_config(), sequences=sequences, **again)


def test_without_resume_the_folder_is_begun_anew(tmp_path: Path, sequences: Sequences):
    first = train(config=_config(), sequences=sequences, sources=None, output=tmp_path)
    second = train(config=_config(seed=1), sequences=sequences, sources=None, output=tmp_path)
    assert _learned(first) != _learned(second)
    assert len(second.history) == 5


def test_tensorboard_reads_every_epoch(tmp_path: Path, sequences: Sequences):
    config = _config(optimiser__epochs=3)
    result = train(config=config, sequences=sequences, sources=None, output=tmp_path)
    (file,) = (tmp_path / "tensorboard").iterdir()
    values = {
        (value.tag, event.step): value.simple_value
        for event in _events(file.read_bytes())
        for value in event.summary.value
    }
    for report in result.history:
        expected = pytest.approx(report.valid["sampled"]["ndcg@10"])
        assert values["valid_sampled/ndcg_at_10", report.epoch] == expected
        assert values["loss/recommend", report.epoch] == pytest.approx(report.losses["recommend"])


def _events(data: bytes) -> list[Event]:
    """TFRecord: a length of 8 bytes, its checksum of 4, the record, its checksum of 4."""
    events = []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


@pytest.mark.parametrize(("method", "backbone"), [("none", "sasrec"), ("dmesr-paper", "bert4rec")])
def test_two_processes_train_what_one_trains(
    method: str, backbone: str, tmp_path: Path, sequences: Sequences, sources: Sources
):
    """Without dropout and drawn candidates there is nothing that two processes do differently, but for rounding."""
    config = _config(
        method,
        backbone,
        backbone__dropout=0.0,
        loss__candidates=0,
        alignment__weight=0.0,
        optimiser__epochs=3,
        optimiser__batch_size=7,
    )
    data = {"sequences": sequences, "sources": sources}
    one = train(config=config, **data, output=tmp_path / "one")
    two = train(config=config.changed(devices=2), **data, output=tmp_path / "two")
    for alone, shared in zip(one.history, two.history, strict=True):
        assert shared.losses == pytest.approx(alone.losses, rel=1e-4)
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert two.metrics["test"]["sampled"] == pytest.approx(one.metrics["test"]["sampled"], abs=0.05)
    assert not torch.distributed.is_initialized()


def test_two_processes_go_on_where_they_were_ended(tmp_path: Path, sequences: Sequences, sources: Sources):
    data = {"config": _config("dmesr", devices=2), "sequences": sequences, "sources": sources}
    whole = train(**data, output=tmp_path / "whole")
    with pytest.raises(_EndedError):
        train(**data, output=tmp_path / "run", on_epoch=_end_after(2))
    resumed = train(**data, output=tmp_path / "run", resume=True)
    assert _learned(resumed) == _learned(whole)
    assert resumed.metrics == whole.metrics


def test_devices_that_are_not_there_are_refused(tmp_path: Path, sequences: Sequences):
    for changes, message in (({"devices": 0}, "at least one"), ({"devices": 99}, "cannot be shared among 99")):
        with pytest.raises(ValueError, match=message):
            train(config=_config(**changes), sequences=sequences, sources=None, output=tmp_path)
