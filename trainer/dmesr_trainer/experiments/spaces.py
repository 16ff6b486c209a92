"""What a free search may choose from: the same settings for every method, and each method's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmesr_trainer.config import FLOORS, METHODS
from dmesr_trainer.experiments.ablation import flat
from dmesr_trainer.experiments.arms import OURS, Setup


@dataclass(frozen=True)
class Choice:
    """One of these values."""

    values: tuple[Any, ...]

    def with_value(self, value: Any) -> Choice:
        """The same, with the preset's own value among them."""
        return self if value in self.values else Choice((*self.values, value))


@dataclass(frozen=True)
class Range:
    """Any number between two, evenly on a logarithmic scale."""

    low: float
    high: float

    def with_value(self, value: Any) -> Range:
        """The same, wide enough for the preset's own value."""
        return Range(min(self.low, value), max(self.high, value))


Space = dict[str, Choice | Range]

SHARED: Mapping[str, Choice | Range] = {
    "dim": Choice((64, 128, 256)),
    "optimiser__learning_rate": Range(3e-4, 3e-3),
    "optimiser__weight_decay": Choice((0.0, 0.01, 0.1)),
    "optimiser__batch_size": Choice((32, 64, 128, 256)),
    "loss__candidates": Choice((0, 256, 1024)),
    "backbone__dropout": Choice((0.1, 0.2, 0.3, 0.5)),
    "backbone__max_history": Choice((20, 50, 100)),
    "backbone__layers": Choice((1, 2)),
}
_DMESR: Mapping[str, Choice | Range] = {
    "alignment__weight": Choice((0.0, 0.01, 0.05, 0.1, 0.5, 1.0)),
    "alignment__temperature": Choice((0.1, 0.5, 2.0)),
    "adapter__whitened_dims": Choice((64, 128, 256)),
    "ids__dropout": Choice((0.0, 0.1, 0.2, 0.4)),
    "sources__coarse_form": Choice(("anchor", "pooled", "concatenated")),
    "fusion__heads": Choice((1, 2, 4)),
}
#: Of a method alone. A setting that the trainer does not have is left out.
OWN: Mapping[str, Mapping[str, Choice | Range]] = {
    **dict.fromkeys(OURS, _DMESR),
    "cpmm": {
        "cpmm__noise": Choice((0.0, 0.045, 0.2)),
        "cpmm__contrast": Choice((0.5, 1.0, 2.0)),
        "cpmm__weight": Choice((0.0, 0.01, 0.1)),
        "cpmm__temperature": Choice((0.01, 0.05, 0.2)),
        "adapter__whitened_dims": Choice((64, 128, 256)),
        "ids__dropout": Choice((0.0, 0.1, 0.2, 0.4)),
    },
    "qarm": {
        "qarm__vq_codes": Choice((0, 10, 25)),
        "qarm__rq_levels": Choice((0, 3, 6)),
        "qarm__rq_clusters": Choice((64, 256)),
        "qarm__temperature": Choice((0.05, 0.1, 0.5)),
        "ids__dropout": Choice((0.0, 0.1, 0.2, 0.4)),
    },
    "xreflect": {
        "adapter__whitened_dims": Choice((64, 128, 256)),
        "ids__dropout": Choice((0.0, 0.1, 0.2, 0.4)),
    },
    "ease": {
        "ease__l2": Range(10.0, 5000.0),
        "ease__history": Choice((5, 10, 20, 50)),
        "ease__train_last": Choice((0, 20, 50, 100)),
    },
}


def space_of(setup: Setup, method: str, backbone: str, *, file: Mapping[str, Any]) -> Space:
    """What may be chosen for a method; the preset's own values are always among it.

    Args:
        setup: What the experiment shares. What it sets for all methods or this one is not searched.
        method: The method.
        backbone: Its backbone.
        file: A user's own space, from `read`; what it names replaces the setting's choices here.

    Raises:
        ValueError: The user's space names an unknown setting.
    """
    preset = flat(setup.config(method, backbone))
    mine = {**file.get("shared", {}), **file.get(method, {})} if method not in FLOORS else file.get(method, {})
    for name in mine:
        if name not in preset:
            raise ValueError(f"the search space names {name.replace('__', '.')!r}, which is no setting of a run")
    known = {} if method in FLOORS else SHARED
    fixed = {*setup.changes, *setup.method_changes.get(method, {})}
    space = {**known, **OWN.get(method.replace("-reflect", "reflect"), {}), **mine}
    return {
        name: choice.with_value(preset[name]) for name, choice in space.items() if name in preset and name not in fixed
    }


def read(path: Path | None) -> dict[str, dict[str, Choice | Range]]:
    """Reads a user's space: {"shared" or a method: {"part.field": [values] or {"low": …, "high": …}}}.

    Raises:
        ValueError: The file is not that.
    """
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if unknown := sorted(set(values) - {"shared", *METHODS}):
            raise ValueError(f"{unknown[0]!r} is neither 'shared' nor a method")
        return {
            method: {name.replace(".", "__"): _choice(value) for name, value in settings.items()}
            for method, settings in values.items()
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no search space ({error}); write JSON such as "
            '{"shared": {"dim": [64, 128]}, "dmesr": {"alignment.weight": {"low": 0.001, "high": 1}}}'
        ) from error


def told(space: Space) -> dict[str, Any]:
    """The space as results.json holds it."""
    return {
        name.replace("__", "."): list(choice.values)
        if isinstance(choice, Choice)
        else {"low": choice.low, "high": choice.high}
        for name, choice in space.items()
    }


def _choice(value: Any) -> Choice | Range:
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return Choice(tuple(value))
    return Range(float(value["low"]), float(value["high"]))
