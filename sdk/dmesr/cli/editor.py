"""A text in the user's own editor."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from .console import fail


def edited(text: str) -> str:
    """Opens the text in $VISUAL or $EDITOR and returns what was saved.

    Args:
        text: What the editor shows at first.

    Raises:
        typer.Exit: The editor cannot be started, or ends with an error; the text is not lost then.
    """
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ("notepad" if sys.platform == "win32" else "vi")
    with tempfile.TemporaryDirectory(prefix="dmesr-") as folder:
        file = Path(folder) / "description.txt"
        file.write_text(f"{text}\n", encoding="utf-8")
        try:
            ended = subprocess.run([*shlex.split(command), str(file)], check=False)
        except (OSError, ValueError) as error:
            fail(f"the editor {command!r} cannot be started ({error}): set EDITOR, or give --text or --file")
        if ended.returncode:
            fail(f"the editor {command!r} ended with {ended.returncode}: nothing was changed")
        return file.read_text(encoding="utf-8").strip()
