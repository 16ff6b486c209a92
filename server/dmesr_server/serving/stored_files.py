"""The files of published models as they lie on the disk, against what was published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dmesr_server.errors import ServiceError
from dmesr_server.serving.artefact import MANIFEST, parse_manifest


def damaged(folder: Path, manifest_json: str, *, contents: bool) -> Iterator[tuple[str, str]]:
    """Files of an artefact that are missing or not those that were published, each with what is wrong with it.

    Args:
        folder: Where they lie.
        manifest_json: The manifest as it was published.
        contents: Hash them; otherwise only their sizes are looked at.
    """
    try:
        manifest = parse_manifest(manifest_json)
    except ServiceError as error:
        yield MANIFEST, f"the control database's own copy of it cannot be read: {error.message}"
        return
    try:
        if (folder / MANIFEST).read_bytes() != manifest_json.encode():
            yield MANIFEST, "differs from the one that was published"
    except OSError as error:
        yield MANIFEST, f"cannot be read: {error.strerror}"
    for name, expected in manifest.files.items():
        try:
            found = expected.difference(folder / name, contents=contents)
            if found is not None:
                yield name, f"{found}, expected {found.expected}"
        except OSError as error:
            yield name, f"cannot be read: {error.strerror}"
