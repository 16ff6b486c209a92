"""What a run is made of, from a file, from flags and from an earlier run's folder: its data and its settings."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmesr_trainer.cli.dataset_options import DatasetOptions

if TYPE_CHECKING:
    from dmesr_trainer.config import TrainConfig

_DATA_FILE = "data.json"


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which interactions and vectors; the table [data] of a settings file.

    Attributes:
        dataset: Its name.
        options: Where its files are.
        catalog: The server's catalog; None for that of the command line or the environment.
        recipe: The embedding recipe.
    """

    dataset: str = "sample"
    options: DatasetOptions = dataclasses.field(default_factory=DatasetOptions)
    catalog: str | None = None
    recipe: str = "default"

    def changed(self, given: Mapping[str, Any]) -> DataSettings:
        """A copy with some of them, or of the dataset's options, changed."""
        own = {name: value for name, value in given.items() if name in _OWN}
        options = {name: value for name, value in given.items() if name not in _OWN}
        return dataclasses.replace(self, **own, options=dataclasses.replace(self.options, **options))

    def write(self, folder: Path) -> None:
        """Keeps them in a run's folder, for `read`."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {name: getattr(self, name) for name in _OWN} | dataclasses.asdict(self.options)
        text = json.dumps(
            {name: value for name, value in values.items() if value is not None}, default=_plain, indent=2
        )
        (folder / _DATA_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> DataSettings:
        """What `write` kept.

        Raises:
            ValueError: The folder holds no run of this command.
        """
        try:
            values = json.loads((folder / _DATA_FILE).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            raise ValueError(
                f"{folder} holds no run that can go on ({_DATA_FILE} is missing or broken); give the folder that "
                "`train --output` made"
            ) from None
        return cls.from_values(values, folder=folder)

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, folder: Path) -> DataSettings:
        """From plain values.

        Args:
            values: By name, as flags are called, with _ for -.
            folder: What paths are relative to.

        Raises:
            ValueError: A name is unknown or a value has another type.
        """
        kinds = typing.get_type_hints(DatasetOptions) | {"dataset": str, "catalog": str, "recipe": str}
        given = {}
        for name, value in values.items():
            if name not in kinds:
                raise ValueError(f"unknown setting 'data.{name}'; known there: {', '.join(sorted(kinds))}")
            given[name] = _typed(value, kinds[name], name=name, folder=folder)
        return cls().changed(given)


_OWN = ("dataset", "catalog", "recipe")


def read_file(path: Path) -> tuple[DataSettings, dict[str, Any]]:
    """A settings file: its data, and its settings of the run as plain values.

    Raises:
        ValueError: The file cannot be read or is no TOML, or its [data] does not fit.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is no TOML: {error}") from None
    data = values.pop("data", {})
    if not isinstance(data, dict):
        raise ValueError(f"--config {path}: data must be a table")
    return DataSettings.from_values(data, folder=path.parent), values


def read_config(folder: Path) -> TrainConfig:
    """The settings of the run in a folder.

    Raises:
        ValueError: It holds none.
    """
    from dmesr_trainer.config import TrainConfig

    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise ValueError(f"{folder} holds no run that can go on: config.json is missing or broken") from None
    return TrainConfig.from_dict(values)


def as_changes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as `TrainConfig.changed` takes them: "part__field"."""
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            changes |= {f"{name}__{inner}": one for inner, one in value.items()}
        else:
            changes[name] = value
    return changes


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value.resolve())
    assert isinstance(value, date)
    return value.isoformat()


def _typed(value: Any, kind: Any, *, name: str, folder: Path) -> Any:
    if isinstance(kind, types.UnionType):
        kind = next(one for one in typing.get_args(kind) if one is not type(None))
    if kind is Path and isinstance(value, str):
        return folder / value
    if kind is datetime and isinstance(value, str | date):
        try:
            return datetime.fromisoformat(str(value))
        except ValueError:
            raise ValueError(f"data.{name} is {value!r}; it must be a day, YYYY-MM-DD") from None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"data.{name} is {value!r}; it must be of type {kind.__name__}")
    return value
