"""From what a command was told to an experiment's setup: the data, the vectors, the budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dmesr
from dmesr.cli.console import progress, say

from dmesr_trainer.config import TrainConfig
from dmesr_trainer.datasets import Dataset, paper_settings
from dmesr_trainer.experiments import data as data_files
from dmesr_trainer.experiments import vectors as vector_files
from dmesr_trainer.experiments.arms import AS_PRINTED, Budget, Setup
from dmesr_trainer.experiments.cells import CellStore
from dmesr_trainer.experiments.data import Data
from dmesr_trainer.experiments.vectors import Vectors


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a command was told, the same for every experiment.

    Attributes:
        dataset: Opened.
        name: What tables and the output folder call it.
        only_with_picture: Keep only items with a picture.
        recipe: Of the vectors.
        catalog: Of the server.
        refresh: Read the vectors anew.
        budget: Of every method.
        changes: "PART.FIELD=VALUE" for every method or "METHOD:PART.FIELD=VALUE" for one.
        paper_settings: Give every method the paper's settings for the dataset; `dmesr-paper` has them in any case.
        device: "auto", "cpu" or "cuda".
        jobs: Cells at a time.
        cells: The folder of all cells.
        runs_from: Folders of experiments whose runs are taken where they are the same cells.
        output: Where results go; docs/experiments/EXPERIMENT-DATASET when None.
        only_report: Run nothing.
        command: What was typed.
    """

    dataset: Dataset
    name: str
    only_with_picture: bool = False
    recipe: str = "default"
    catalog: str = "default"
    refresh: bool = False
    budget: Budget = field(default_factory=Budget)
    changes: Sequence[str] = ()
    paper_settings: bool = False
    device: str = "auto"
    jobs: int = 1
    cells: Path = Path("runs/experiments")
    runs_from: Sequence[Path] = ()
    output: Path | None = None
    only_report: bool = False
    command: str = ""


Connect = Callable[[], AbstractContextManager[dmesr.Client]]


def setup(request: Request, *, experiment: str, needs_vectors: bool, connect: Connect) -> Setup:
    """Opens everything; the server is asked only for vectors that are not kept yet.

    Args:
        request: What the command was told.
        experiment: For the output folder.
        needs_vectors: Whether any of its methods reads vectors.
        connect: Opens a client of the server.

    Raises:
        ValueError: What was given does not fit. DatasetError is one.
        dmesr.DmesrError: The server refused or is not there.
    """
    changes, method_changes = settings(request.changes)
    data = _data(request)
    store = CellStore(request.cells, runs_from=request.runs_from)
    data_files.save(data, store.data)
    vectors = obtain(request, request.recipe, data=data, store=store, connect=connect) if needs_vectors else None
    changes = {"device": request.device, **_negatives(data, changes), **changes}
    about = data.about
    papers = paper_settings(request.dataset.name, mean_length=about.interactions / about.users).changes()
    del papers["optimiser__patience"]  # the budget is the same for every method
    folder = f"{experiment}-{data.about.dataset}" + ("-with-picture" if request.only_with_picture else "")
    return Setup(
        data=data,
        store=store,
        vectors=vectors,
        budget=request.budget,
        changes={**papers, **changes} if request.paper_settings else changes,
        method_changes={**method_changes, AS_PRINTED: {**papers, **changes, **method_changes.get(AS_PRINTED, {})}},
        jobs=request.jobs,
        output=request.output or Path("docs/experiments") / folder,
        command=request.command,
        only_report=request.only_report,
    )


def obtain(request: Request, recipe: str, *, data: Data, store: CellStore, connect: Connect) -> Vectors:
    """The vectors of a recipe, kept or fetched; says which."""
    with progress("reading vectors"):
        vectors, kept = vector_files.obtain(
            store.vectors,
            key=f"{request.catalog}-{data.about.dataset}",
            recipe=recipe,
            item_ids=data.sequences.item_ids,
            connect=connect,
            refresh=request.refresh,
        )
    covered = ", ".join(f"{name} {count:,}" for name, count in vectors.coverage.items())
    whence = (
        "kept from an earlier call; the server was not asked, --refresh reads them anew"
        if kept
        else "read from the server and kept, so that resuming needs no server"
    )
    say(f"vectors of recipe {recipe} ({vectors.recipe_id}) at version {vectors.version}: {covered}; {whence}")
    say(f"their describer: {vectors.describer.told}")
    return vectors


def settings(changes: Sequence[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Reads "PART.FIELD=VALUE" and "METHOD:PART.FIELD=VALUE".

    Returns:
        The changes for every method, and those by method.

    Raises:
        ValueError: One cannot be read, or names an unknown setting.
    """
    every: dict[str, Any] = {}
    by_method: dict[str, dict[str, Any]] = {}
    for one in changes:
        name, separator, text = one.partition("=")
        method, colon, rest = name.strip().rpartition(":")
        if not separator or (colon and not method):
            raise ValueError(
                f"--set {one}: write PART.FIELD=VALUE or METHOD:PART.FIELD=VALUE, for instance "
                "dmesr:alignment.weight=0.1"
            )
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if isinstance(value, list):
            value = tuple(value)
        key = rest.replace(".", "__")
        TrainConfig().changed(**{key: value})
        (by_method.setdefault(method, {}) if method else every)[key] = value
    return every, by_method


def _data(request: Request) -> Data:
    data = data_files.read(request.dataset, name=request.name, only_with_picture=request.only_with_picture)
    about = data.about
    say(
        f"{about.dataset}: {about.users:,} users, {about.items:,} items, {about.interactions:,} interactions"
        + (f"; only {', '.join(about.filters)}" if about.filters else "")
    )
    return data


def _negatives(data: Data, changes: dict[str, Any]) -> dict[str, Any]:
    """Fewer candidates than the protocol's where a user has met nearly everything."""
    wanted = changes.get("evaluation__negatives", TrainConfig().evaluation.negatives)
    possible = data_files.fewest_unseen(data.sequences) if data.about.held_out_users else 0
    if not data.about.held_out_users:
        raise ValueError(f"none of the {data.about.users} users has 3 events or more, so nothing can be held out")
    if wanted <= possible:
        return {}
    if possible < 1:
        raise ValueError("a user has met every item, so no unseen item can be drawn beside the held-out one")
    if "evaluation__negatives" in changes:
        raise ValueError(f"evaluation.negatives is {wanted}, but a user has only {possible} items that were not met")
    say(f"a user has met all but {possible} items, so there are {possible} sampled candidates instead of {wanted}")
    return {"evaluation__negatives": possible}
