"""Pictures that lie in a folder, named by what they show."""

from __future__ import annotations

from pathlib import Path

from dmesr_trainer.datasets.base import DatasetError

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def named_pictures(folder: Path | None, *, default: Path) -> dict[str, Path]:
    """The pictures of a folder, by name without the ending.

    Args:
        folder: The folder that was asked for.
        default: Where to look when none was; it may be missing.

    Raises:
        DatasetError: A folder was asked for that is not there.
    """
    if folder is None:
        folder = default
        if not folder.is_dir():
            return {}
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder; --posters names the folder of pictures named by item id")
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in PICTURE_ENDINGS}
