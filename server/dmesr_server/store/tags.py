"""The tags of a LanceDB table, which keep versions from house-keeping."""

from __future__ import annotations

from typing import Any

_ATTEMPTS = 20  # each needs another reader to give a pin back in just that moment


def tags_of(handle: Any) -> dict[str, int]:
    """The tagged versions by tag, while others set tags and take them away.

    Lance lists the files of the tags and then reads each: one that is taken away in between is an error to it.

    Args:
        handle: The LanceDB table.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return {tag: int(told["version"]) for tag, told in handle.tags.list().items()}
        except (RuntimeError, ValueError, OSError) as error:
            text = str(error)
            if attempt == _ATTEMPTS or "_refs" not in text or "not found" not in text.lower():
                raise
    raise AssertionError("unreachable")
