"""The histories that cells are trained on: read once, filtered, and kept by digest, so that a cell needs no dataset.

Shapes: E events, U users, N items, C events of items that were left out of training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from dmesr_trainer.datasets import Dataset
from dmesr_trainer.experiments.storage import read_ids, read_json, write_ids, write_json
from dmesr_trainer.sequences import MIN_EVENTS_TO_HOLD_OUT, Sequences


@dataclass(frozen=True)
class ColdEvents:
    """Events of items that no training event has, one for a user at most: what new items are ranked by.

    Attributes:
        users_C: int64, rising. The user's whole history in the sequences comes before the event.
        targets_C: int64 item indexes.
    """

    users_C: NDArray[np.int64]
    targets_C: NDArray[np.int64]


@dataclass(frozen=True)
class About:
    """What a table says of its data."""

    dataset: str
    filters: tuple[str, ...]
    planted: bool
    users: int
    items: int
    interactions: int
    held_out_users: int


@dataclass(frozen=True)
class Data:
    """Histories and, for experiments on new items, what was left out of them."""

    about: About
    sequences: Sequences
    cold: ColdEvents | None = None

    @property
    def digest(self) -> str:
        """sha256 over all that a cell trains and is measured on; names of datasets are no part of it."""
        sequences = self.sequences
        digest = hashlib.sha256()
        for ids in (sequences.item_ids, sequences.user_ids):
            digest.update(json.dumps(ids).encode())
        arrays = [sequences.events_E, sequences.starts_U1]
        if self.cold is not None:
            arrays += [self.cold.users_C, self.cold.targets_C]
        for values in arrays:
            digest.update(np.ascontiguousarray(values, np.int64).tobytes())
        return digest.hexdigest()


def read(dataset: Dataset, *, name: str, only_with_picture: bool = False) -> Data:
    """Reads a dataset's interactions and applies the filters.

    Args:
        dataset: Opened.
        name: What tables call it.
        only_with_picture: Keep only events of items with a picture, and only these items as candidates: presence of
            a picture tells popularity, and in this sub-catalogue it tells nothing.

    Raises:
        ValueError: Nothing is left that could be held out. DatasetError is one.
    """
    sequences = Sequences.from_interactions(dataset.interactions())
    filters: tuple[str, ...] = ()
    if only_with_picture:
        with_picture = {item.item_id for item in dataset.items() if getattr(item, "picture", None) is not None}
        sequences = only_items(sequences, with_picture)
        filters = ("items with a picture",)
    return Data(about=_about(sequences, name=name, filters=filters, planted=dataset.planted), sequences=sequences)


def only_items(sequences: Sequences, kept: Collection[str]) -> Sequences:
    """The histories without the events of other items; the other items are no candidates either.

    Users without any event left are left out; those with fewer than three are training only, as everywhere.

    Raises:
        ValueError: No user has three events left.
    """
    keep_N = np.array([item_id in kept for item_id in sequences.item_ids], bool)
    place_N = np.cumsum(keep_N) - 1
    users_E = np.repeat(np.arange(sequences.n_users), sequences.lengths_U)
    keep_E = keep_N[sequences.events_E]
    lengths_U = np.bincount(users_E[keep_E], minlength=sequences.n_users)
    if lengths_U.max(initial=0) < MIN_EVENTS_TO_HOLD_OUT:
        raise ValueError(
            f"of the {sequences.n_items} items {int(keep_N.sum())} are kept, and no user has 3 events among them; "
            "leave the filter out"
        )
    there_U = lengths_U > 0
    return Sequences(
        item_ids=tuple(np.array(sequences.item_ids, object)[keep_N].tolist()),
        user_ids=tuple(np.array(sequences.user_ids, object)[there_U].tolist()),
        events_E=place_N[sequences.events_E[keep_E]].astype(np.int64),
        starts_U1=np.concatenate([[0], np.cumsum(lengths_U[there_U])]).astype(np.int64),
    )


def without_items(data: Data, cold_N: NDArray[np.bool_]) -> Data:
    """Leaves items out of training, validation and testing altogether, and keeps the test events that were theirs.

    A user whose test item is among them, and who has other events, is measured on it: the history is all of the
    user's other events, which come before it.

    Args:
        data: Whole.
        cold_N: Which items are left out. They stay in the list of items, without events.

    Raises:
        ValueError: No user can be measured.
    """
    sequences = data.sequences
    users_E = np.repeat(np.arange(sequences.n_users), sequences.lengths_U)
    keep_E = ~cold_N[sequences.events_E]
    lengths_U = np.bincount(users_E[keep_E], minlength=sequences.n_users)
    users_H, targets_H = sequences.held_out_users_H, sequences.targets_H("test")
    measured_H = cold_N[targets_H] & (lengths_U[users_H] > 0)
    if not measured_H.any():
        raise ValueError(f"none of the {int(cold_N.sum())} items left out is anybody's test item; use fewer folds")
    # Users keep their place, those without events too: ranks of several folds are joined by it.
    left = replace(
        sequences,
        events_E=sequences.events_E[keep_E],
        starts_U1=np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64),
    )
    about = _about(left, name=data.about.dataset, filters=data.about.filters, planted=data.about.planted)
    return Data(
        about=about,
        sequences=left,
        cold=ColdEvents(users_C=users_H[measured_H], targets_C=targets_H[measured_H]),
    )


def save(data: Data, folder: Path) -> Path:
    """Keeps the data in `folder`/DIGEST; does nothing where it is already there."""
    there = folder / data.digest
    if (there / "about.json").exists():
        return there
    there.mkdir(parents=True, exist_ok=True)
    arrays = {"events": data.sequences.events_E, "starts": data.sequences.starts_U1}
    if data.cold is not None:
        arrays |= {"cold_users": data.cold.users_C, "cold_targets": data.cold.targets_C}
    # A kill never leaves half a file under its final name, and the last one written says that all are there.
    partial = there / "arrays.partial"
    save_file(arrays, partial)
    partial.replace(there / "arrays.safetensors")
    write_ids(there / "items.arrow", data.sequences.item_ids)
    write_ids(there / "users.arrow", data.sequences.user_ids)
    write_json(there / "about.json", asdict(data.about))
    return there


def load(folder: Path) -> Data:
    """The reverse of `save`.

    Args:
        folder: What `save` returned.
    """
    arrays = load_file(folder / "arrays.safetensors")
    about = read_json(folder / "about.json")
    cold = ColdEvents(arrays["cold_users"], arrays["cold_targets"]) if "cold_users" in arrays else None
    return Data(
        about=About(**{**about, "filters": tuple(about["filters"])}),
        sequences=Sequences(
            item_ids=read_ids(folder / "items.arrow"),
            user_ids=read_ids(folder / "users.arrow"),
            events_E=arrays["events"],
            starts_U1=arrays["starts"],
        ),
        cold=cold,
    )


def fewest_unseen(sequences: Sequences) -> int:
    """How many items the user that has met most has not met: no more negatives can be drawn for everybody."""
    return min(sequences.n_items - len(np.unique(sequences.events(int(user)))) for user in sequences.held_out_users_H)


def _about(sequences: Sequences, *, name: str, filters: tuple[str, ...], planted: bool) -> About:
    return About(
        dataset=name,
        filters=filters,
        planted=planted,
        users=sequences.n_users,
        items=sequences.n_items,
        interactions=len(sequences.events_E),
        held_out_users=len(sequences.held_out_users_H),
    )
