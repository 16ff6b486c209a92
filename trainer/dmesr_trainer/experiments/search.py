"""Free searches of settings, by the validation events alone, with the same number of trials for every method.

A trial is a cell, and what the sampler asks for depends on its seed and on the values of the trials before: a search
that was interrupted goes through the same trials again without running any twice. So does a longer one with the trials
that the folder of a shorter one tells of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from dmesr.cli.console import say

from dmesr_trainer.experiments import spaces
from dmesr_trainer.experiments.ablation import flat
from dmesr_trainer.experiments.arms import Arm, Setup
from dmesr_trainer.experiments.pool import Pool
from dmesr_trainer.experiments.spaces import Choice, Space

_SAMPLER_SEED = 0
# Asked for before any of them is told, however many run at a time: else --jobs would decide what is tried.
_TOGETHER = 4


@dataclass(frozen=True)
class Trial:
    """One choice of settings.

    Attributes:
        number: From 0, which is the preset itself.
        settings: What was chosen.
        valid: Sampled validation NDCG@k of the best epoch; None where the run failed or is not there.
        cell: The name of its folder.
        problem: Why there is no value.
        taken_from: The experiment whose search told the value, where it was not run again.
    """

    number: int
    settings: dict[str, Any]
    valid: float | None
    cell: str
    problem: str = ""
    taken_from: str = ""


@dataclass(frozen=True)
class Search:
    """A finished search of one method on one backbone."""

    method: str
    backbone: str
    space: Space
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """By validation; the first of equals."""
        done = [trial for trial in self.trials if trial.valid is not None]
        return max(done, key=lambda trial: trial.valid or -math.inf, default=None)

    def to_json(self) -> dict[str, Any]:
        """Every trial, as results.json holds it."""
        return {
            "method": self.method,
            "backbone": self.backbone,
            "space": spaces.told(self.space),
            "trials": [
                {
                    "number": trial.number,
                    "settings": {name.replace("__", "."): value for name, value in trial.settings.items()},
                    "valid": trial.valid,
                    "cell": trial.cell,
                    "problem": trial.problem,
                    "taken_from": trial.taken_from,
                }
                for trial in self.trials
            ],
            "best": self.best and self.best.number,
        }


def search(setup: Setup, method: str, backbone: str, *, space: Space, trials: int, pool: Pool) -> Search:
    """Tries settings, with the first seed; the test events play no part in what is tried or chosen.

    Args:
        setup: What the experiment shares.
        method: The method.
        backbone: Its backbone.
        space: What may be chosen.
        trials: How many, the preset among them.
        pool: What runs them.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=_SAMPLER_SEED))
    preset = flat(setup.config(method, backbone))
    study.enqueue_trial({name: preset[name] for name in space})
    done: list[Trial] = []
    while len(done) < trials:
        asked = [study.ask() for _ in range(min(_TOGETHER, trials - len(done)))]
        chosen = [{name: _suggest(trial, name, choice) for name, choice in space.items()} for trial in asked]
        found = _run(setup, method, backbone, chosen, first=len(done), pool=pool)
        for trial, one in zip(asked, found, strict=True):
            if one.valid is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, one.valid)
        done += found
    result = Search(method, backbone, space, tuple(done))
    if result.best is not None:
        best, label = result.best, setup.arm(method, backbone).label
        say(f"{label}: the best of {trials} trials is number {best.number}, valid {best.valid:.4f}")
    return result


def searched_arm(setup: Setup, found: Search) -> Arm | None:
    """The best settings as a row, to be run with all seeds; None where no trial has a value."""
    if found.best is None:
        return None
    config = setup.config(found.method, found.backbone).changed(**found.best.settings)
    return setup.arm(found.method, found.backbone, called=f"{found.method} searched", config=config)


def _suggest(trial: optuna.Trial, name: str, choice: Any) -> Any:
    if isinstance(choice, Choice):
        return trial.suggest_categorical(name, list(choice.values))
    return trial.suggest_float(name, choice.low, choice.high, log=True)


def _run(
    setup: Setup, method: str, backbone: str, chosen: Sequence[dict[str, Any]], *, first: int, pool: Pool
) -> list[Trial]:
    whole = setup.config(method, backbone)
    arms = [
        setup.arm(method, backbone, called=f"{method} trial {first + place}", config=whole.changed(**settings))
        for place, settings in enumerate(chosen)
    ]
    tasks = [setup.task(arm, arm.seeds[0]) for arm in arms]
    earlier = [None if task.cell.finished else setup.store.tried(task.cell.spec) for task in tasks]
    wanted = [task for task, told in zip(tasks, earlier, strict=True) if told is None]
    failures = [] if setup.only_report else pool.run(wanted, label=f"searching {setup.arm(method, backbone).label}")
    problems = {failure.label: failure.message for failure in failures}
    found = []
    for place, (task, settings, told) in enumerate(zip(tasks, chosen, earlier, strict=True)):
        valid = None if told is None else told.valid
        if task.cell.finished:
            figures = task.cell.result.metrics["valid"]["sampled"]
            valid = figures[f"ndcg@{whole.evaluation.k}"]
        found.append(
            Trial(
                number=first + place,
                settings=settings,
                valid=valid,
                cell=task.cell.folder.name,
                problem=problems.get(task.label, "" if valid is not None else "not run"),
                taken_from="" if told is None else told.folder,
            )
        )
    return found
