from __future__ import annotations

import json

import pytest
from dmesr_trainer.config import METHODS, TrainConfig


@pytest.mark.parametrize("method", METHODS)
def test_a_config_survives_json(method: str):
    config = TrainConfig.preset(method, seed=3, optimiser__epochs=7)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_presets_take_changes_in_parts():
    config = TrainConfig.preset("dmesr", dim=64, optimiser__epochs=7, alignment__weight=0.5)
    assert (config.dim, config.optimiser.epochs, config.alignment.weight) == (64, 7, 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig.preset("dmsr"), r"unknown method 'dmsr'; choose one of .*dmesr"),
        (
            lambda: TrainConfig.preset("dmesr", backbone="gru5rec"),
            "unknown backbone 'gru5rec'; choose one of sasrec, gru4rec",
        ),
        (lambda: TrainConfig.preset("dmesr", colour="red"), "colour"),
        (lambda: TrainConfig.preset("dmesr", optimiser__speed=1), "speed"),
        (lambda: TrainConfig.preset("dmesr", engine__speed=1), "engine"),
        (lambda: TrainConfig.from_dict({"optimiser": {"speed": 1}}), "unknown setting 'optimiser.speed'"),
        (lambda: TrainConfig.preset("dmesr").without("posters"), "what can be left out is alignment, cross-attention"),
    ],
)
def test_what_is_unknown_is_named(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_paper_s_settings():
    paper = TrainConfig.preset("dmesr-paper")
    assert (paper.dim, paper.optimiser.batch_size, paper.optimiser.patience) == (128, 128, 20)
    assert (paper.alignment.temperature, paper.loss.name, paper.optimiser.weight_decay) == (2.0, "bce", 0.0)
