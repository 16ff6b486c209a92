"""Finds the files of a multimodal LLM and reads its small ones, without loading it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dmesr_server.config import MllmConfig
from dmesr_server.enrichment import picture_tokens
from dmesr_server.enrichment.picture_tokens import Patches
from dmesr_server.errors import ServiceError

_CONFIGURATION = ["*.json", "*.txt", "*.jinja", "*.model"]
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".gguf"})
_SHAPING = _WEIGHTS | {".json", ".txt", ".jinja", ".model"}  # suffixes of files that shape texts
_UNUSED = ["*.md", "onnx/*", "openvino/*", "original/*", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.pth"]


@dataclass(frozen=True)
class ModelFiles:
    """A model that was found.

    Attributes:
        name: Its name in recipes: as configured, or a folder's own name.
        revision: The hub's commit, a hash of the files' content, or what the configuration says.
        hub_name: Its name on the hub; None for a folder.
        folder: Where its small files are; None where a revision was configured and nothing had to be looked up.
    """

    name: str
    revision: str
    hub_name: str | None
    folder: Path | None

    def read(self, file: str) -> Mapping[str, Any]:
        """One of its JSON files; empty where it is not there."""
        if self.folder is None or not (self.folder / file).is_file():
            return {}
        try:
            content = json.loads((self.folder / file).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise unavailable(self.name, f"its {file} cannot be read ({error})", "fetch or copy it again") from error
        return content if isinstance(content, dict) else {}

    @property
    def context_tokens(self) -> int | None:
        """The longest conversation that it was made for; None where its files do not tell."""
        config = self.read("config.json")
        limit = (config.get("text_config") or config).get("max_position_embeddings")
        return int(limit) if limit else None

    def patches(self, *, max_pixels: int) -> Patches | None:
        """How it cuts pictures; None for a model that is not of the Qwen2-VL kind."""
        stated = self.read("preprocessor_config.json") or self.read("processor_config.json").get("image_processor")
        return picture_tokens.patches(self.read("config.json"), stated or {}, max_pixels=max_pixels)

    def with_weights(self) -> Path:
        """The folder with everything in it; a hub model is fetched where it is not in the cache. Blocks.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE.
        """
        if self.hub_name is None:
            assert self.folder is not None
            folder = self.folder
        else:
            folder = _from_hub(self.hub_name, self.revision, only_configuration=False)
        _check_weights(self.name, folder)
        return folder


def find(config: MllmConfig) -> ModelFiles:
    """Finds the configured model: a folder, or one of the hub, whose small files are then fetched or read.

    Raises:
        ServiceError: DESCRIBER_UNAVAILABLE, with what to do.
    """
    name = config.model
    folder = Path(name).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        if not (folder / "config.json").is_file():
            raise unavailable(name, "the folder holds no config.json", "name the folder of a whole model")
        _check_weights(name, folder)
        revision = config.revision or _content_hash(folder)
        return ModelFiles(name=folder.name, revision=revision, hub_name=None, folder=folder)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or not name.strip():
        raise unavailable(name, "there is no such folder", "name a folder that holds a model, or a model of the hub")
    if config.revision:
        # Known already: a machine that only starts jobs needs neither the files nor the hub.
        cached = _cached(name, config.revision)
        return ModelFiles(name=name, revision=config.revision, hub_name=name, folder=cached)
    found = _from_hub(name, None, only_configuration=True)
    return ModelFiles(name=name, revision=found.name, hub_name=name, folder=found)


def unavailable(name: str, why: str, remedy: str) -> ServiceError:
    """A model that cannot be used."""
    return ServiceError(
        "DESCRIBER_UNAVAILABLE", f"the model {name!r:.200} cannot be used: {why:.600}; {remedy}", model=name[:200]
    )


def _cached(name: str, revision: str | None) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, local_files_only=True, allow_patterns=_CONFIGURATION
            )
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise unavailable(name, str(error), "name a folder that holds a model, or a model of the hub") from error


def _from_hub(name: str, revision: str | None, *, only_configuration: bool) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if only_configuration:
        # What is in the cache stands: a newer commit on the hub must not change recipes behind anybody's back.
        cached = _cached(name, revision)
        if cached is not None and (cached / "config.json").is_file():
            return cached
    patterns: dict[str, Any] = (
        {"allow_patterns": _CONFIGURATION} if only_configuration else {"ignore_patterns": _UNUSED}
    )
    wanted = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, **patterns))
    except LocalEntryNotFoundError as error:
        what = "it is" if only_configuration else "its weights are"
        why = f"{what} not in the local cache and the hub cannot be reached (or HF_HUB_OFFLINE is set)"
        remedy = f"fetch it once with `{wanted}`, or set enrichment.mllm.model to a folder that holds it"
        raise unavailable(name, why, remedy) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        said = str(error).strip().splitlines()
        why = f"the hub does not give it: {said[0] if said else repr(error)}"
        remedy = "check enrichment.mllm.model and enrichment.mllm.revision (a gated model needs `hf auth login`)"
        raise unavailable(name, why, remedy) from error


def _check_weights(name: str, folder: Path) -> None:
    """All shards that an index names, or any weights at all."""
    for index in folder.glob("*.safetensors.index.json"):
        try:
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise unavailable(
                name, f"{index.name} cannot be read ({error})", "fetch or copy the model again"
            ) from error
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            why = f"{len(missing)} of its {len(shards)} files of weights are missing from {folder}: {missing[0]}"
            raise unavailable(name, why, "fetch or copy the model again")
    if not any(path.suffix in _WEIGHTS for path in folder.iterdir()):
        raise unavailable(name, f"there are no weights in {folder}", "fetch or copy the whole model")


def _content_hash(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _SHAPING)
    if any(path.suffix == ".safetensors" for path in files):
        files = [path for path in files if path.suffix not in (".bin", ".pt")]
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
