"""The vectors that cells read: fetched from the server once, at one pinned version, then kept beside the cells.

So a resumed experiment needs no server, and none of its cells reads another version than the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dmesr
import numpy as np
from safetensors.numpy import load_file, save_file

from dmesr_trainer.experiments.storage import read_ids, read_json, write_ids, write_json
from dmesr_trainer.sources import Sources, fetch


@dataclass(frozen=True)
class Describer:
    """Who made the texts behind a recipe's vectors.

    Attributes:
        name: "vllm", "palette", …; several where routes differ; "" for vectors that a client wrote.
        model: What it ran.
        is_mllm: Whether a multimodal LLM made the texts.
        encoder: What turned the texts into vectors; "" for vectors that a client wrote.
    """

    name: str
    model: str
    is_mllm: bool
    encoder: str

    @property
    def told(self) -> str:
        """In a few words, for titles."""
        if not self.name:
            return "vectors that a client wrote"
        model = f" {self.model}" if self.model and self.model != self.name else ""
        return f"texts by {self.name}{model}" + ("" if self.is_mllm else ", no multimodal LLM")


@dataclass(frozen=True)
class Vectors:
    """A recipe's vectors at one version.

    Attributes:
        recipe: What the caller called the recipe.
        recipe_id: What the server calls it.
        version: Of the table.
        digest: sha256 over (item id, source hashes).
        describer: Who made the texts.
        coverage: Items with a vector, by source.
        path: The folder that keeps them.
    """

    recipe: str
    recipe_id: str
    version: int
    digest: str
    describer: Describer
    coverage: dict[str, int]
    path: Path

    @property
    def identity(self) -> str:
        """What makes two sets of vectors the same for a cell."""
        return f"{self.recipe_id}:{self.digest}"


def load(path: Path) -> Sources:
    """The vectors themselves.

    Args:
        path: `Vectors.path`.
    """
    about, arrays = read_json(path / "about.json"), load_file(path / "vectors.safetensors")
    names: list[str] = about["sources"]
    return Sources(
        item_ids=read_ids(path / "items.arrow"),
        vectors={name: arrays[f"vectors/{name}"] for name in names},
        present={name: arrays[f"present/{name}"] for name in names},
        recipe_id=about["recipe_id"],
        version=about["version"],
        digest=about["digest"],
    )


def obtain(
    folder: Path,
    *,
    key: str,
    recipe: str,
    item_ids: Collection[str],
    connect: Callable[[], AbstractContextManager[dmesr.Client]],
    refresh: bool = False,
) -> tuple[Vectors, bool]:
    """The vectors that were kept under this key and recipe, or else the server's newest.

    Args:
        folder: Where vectors are kept.
        key: What they were fetched for: the catalog and the dataset.
        recipe: The recipe's name or id.
        item_ids: The items to train on; at least one must have a vector.
        connect: Opens a client of the server; called only when something has to be fetched.
        refresh: Fetch even what is kept.

    Returns:
        The vectors, and whether they were kept already.

    Raises:
        ValueError: The server's recipe has no vector of these items.
        dmesr.DmesrError: The server refused or is not there.
    """
    pointer = folder / f"{_file_name(key)}-{_file_name(recipe)}.json"
    if not refresh and pointer.exists():
        path = folder / read_json(pointer)["folder"]
        if (path / "about.json").exists():
            return _about(path, recipe=recipe), True
    with connect() as client:
        sources = fetch(client, recipe=recipe, item_ids=item_ids)
        describer = _describer(client, sources.recipe_id)
    path = _keep(sources, describer=describer, folder=folder)
    write_json(pointer, {"folder": path.name, "key": key, "recipe": recipe})
    return _about(path, recipe=recipe), False


def _keep(sources: Sources, *, describer: Describer, folder: Path) -> Path:
    path = folder / f"{sources.recipe_id}-{sources.digest[:16]}"
    if (path / "about.json").exists():
        return path
    path.mkdir(parents=True, exist_ok=True)
    write_ids(path / "items.arrow", sources.item_ids)
    arrays = {f"vectors/{name}": np.ascontiguousarray(values) for name, values in sources.vectors.items()}
    arrays |= {f"present/{name}": np.ascontiguousarray(values) for name, values in sources.present.items()}
    partial = path / "vectors.partial"
    save_file(arrays, partial)
    partial.replace(path / "vectors.safetensors")
    write_json(
        path / "about.json",
        {
            "recipe_id": sources.recipe_id,
            "version": sources.version,
            "digest": sources.digest,
            "sources": list(sources.names),
            "coverage": sources.coverage(),
            "describer": asdict(describer),
        },
    )
    return path


def _about(path: Path, *, recipe: str) -> Vectors:
    about = read_json(path / "about.json")
    return Vectors(
        recipe=recipe,
        recipe_id=about["recipe_id"],
        version=about["version"],
        digest=about["digest"],
        describer=Describer(**about["describer"]),
        coverage=about["coverage"],
        path=path,
    )


def _describer(client: dmesr.Client, recipe_id: str) -> Describer:
    found = next(one for one in client.embeddings.recipes() if one.recipe_id == recipe_id)
    specs: list[Any] = list(found.description_recipes.values())
    encoder = found.encoder.get("model", "") if specs else ""
    return Describer(
        name=", ".join(sorted({str(spec.get("describer", "")) for spec in specs} - {""})),
        model=", ".join(sorted({str(spec.get("model", "")) for spec in specs} - {""})),
        is_mllm=found.is_mllm,
        encoder=str(encoder),
    )


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)
