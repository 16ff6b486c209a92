"""Reads prompt files, checks them, and renders them for an item."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from PIL import Image

from dmesr_server.enrichment.engines import Turn
from dmesr_server.enrichment.routes import HYBRID
from dmesr_server.errors import ServiceError

from . import languages

#: What a model answers to `review.txt` when its description needs nothing more.
DONE = "NOTHING TO ADD"

SINGLE = "single"
ROUNDS = "rounds"

_PLACEHOLDER = re.compile(r"\{([a-z_]*)\}")
_EVERYWHERE = frozenset({"domain", "language"})
# Each file with the placeholders that it must have.
_REQUIRED: Mapping[str, frozenset[str]] = {
    "system": frozenset(),
    "text": frozenset({"attributes"}),
    "image": frozenset(),
    "hybrid": frozenset({"attributes"}),
    "hybrid_single": frozenset({"attributes"}),
    "review": frozenset({"done"}),
    "revise": frozenset(),
    "reflect": frozenset({"attributes"}),
}


@dataclass(frozen=True)
class Prompts:
    """A checked set of prompts.

    Attributes:
        texts: The content of each file by its name without ".txt".
    """

    texts: Mapping[str, str]

    def revision(self, route: str, *, mode: str) -> str:
        """Hash of the files that a route uses, 12 hex digits: a changed file makes only its own routes stale."""
        names = ["system", *_files(route, mode)]
        total = hashlib.sha256()
        for name in names:
            total.update(f"{name}\0{self.texts[name]}\0".encode())
        return total.hexdigest()[:12]

    def opening(
        self, route: str, *, attributes: str, picture: Image.Image | None, domain: str, language: str, mode: str
    ) -> tuple[Turn, ...]:
        """The turns that ask for a description.

        What is the same for all items and routes comes first, then the picture, then what the route asks: an engine
        with a prefix cache reads an item's picture once for all its routes.

        Args:
            route: For instance "hybrid".
            attributes: As rendered by `rendering.original_text`; empty on the image route.
            picture: None on the text route.
            domain: What the catalog holds, for instance "film".
            language: BCP 47.
            mode: "rounds" or "single"; of hybrid.
        """
        values = {"domain": domain, "language": languages.name(language), "attributes": attributes}
        return (
            Turn("system", _rendered(self.texts["system"], values)),
            Turn("user", _rendered(self.texts[_files(route, mode)[0]], values), picture),
        )

    def review(self, turns: Sequence[Turn], description: str, *, domain: str, language: str) -> tuple[Turn, ...]:
        """The opening, its answer, and the question what is missing, wrong or unclear (the paper's step 2)."""
        values = {"domain": domain, "language": languages.name(language), "done": DONE}
        return (*turns, Turn("assistant", description), Turn("user", _rendered(self.texts["review"], values)))

    def revise(self, turns: Sequence[Turn], points: str, *, domain: str, language: str) -> tuple[Turn, ...]:
        """The turns of a review, its answer, and the request to work the points in."""
        values = {"domain": domain, "language": languages.name(language)}
        return (*turns, Turn("assistant", points), Turn("user", _rendered(self.texts["revise"], values)))


def load(folder: Path | None) -> Prompts:
    """Reads the prompts: the packaged ones, or in their stead those of the same name in a folder of the user's.

    Raises:
        ServiceError: DESCRIBER_UNAVAILABLE: no such folder, a file of an unknown name, a placeholder that is unknown
            or missing.
    """
    texts = dict(_packaged())
    if folder is not None:
        place = folder.expanduser()
        if not place.is_dir():
            raise _wrong(place, "there is no such folder")
        files = sorted(place.glob("*.txt"))
        if not files:
            raise _wrong(place, f"it holds none of {', '.join(f'{name}.txt' for name in _REQUIRED)}")
        for file in files:
            if file.stem not in _REQUIRED:
                raise _wrong(file, f"no prompt has this name; known are {', '.join(_REQUIRED)}")
            texts[file.stem] = _read(file)
            _check(file, texts[file.stem])
    return Prompts(texts)


def _files(route: str, mode: str) -> tuple[str, ...]:
    """The files that a route uses beside the system prompt; the first one opens."""
    if route != HYBRID:
        return (route,)
    return ("hybrid_single",) if mode == SINGLE else ("hybrid", "review", "revise")


@lru_cache(maxsize=1)
def _packaged() -> Mapping[str, str]:
    place = resources.files(__package__)
    return {name: place.joinpath(f"{name}.txt").read_text("utf-8").strip() for name in _REQUIRED}


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(file, f"it cannot be read as UTF-8 text ({error})") from error


def _check(file: Path, text: str) -> None:
    if not text:
        raise _wrong(file, "it is empty")
    found = set(_PLACEHOLDER.findall(text))
    required = _REQUIRED[file.stem]
    allowed = required | _EVERYWHERE
    if unknown := sorted(found - allowed):
        names = ", ".join(f"{{{name}}}" for name in sorted(allowed))
        raise _wrong(file, f"it has the unknown placeholder {{{unknown[0]}}}; it may have {names}")
    if missing := sorted(required - found):
        raise _wrong(file, f"it lacks the placeholder {{{missing[0]}}}")


def _rendered(template: str, values: Mapping[str, str]) -> str:
    """Fills in once: braces inside an attribute stay as they are."""
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)


def _wrong(place: Path, why: str) -> ServiceError:
    return ServiceError(
        "DESCRIBER_UNAVAILABLE",
        f"the prompts at {place} (enrichment.mllm.prompts_folder) cannot be used: {why}",
        path=place,
    )
