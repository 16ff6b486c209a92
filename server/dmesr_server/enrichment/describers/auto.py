"""What the describer "auto" stands for on this machine."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

NAME = "auto"


@dataclass(frozen=True)
class Choice:
    """A describer and why it was chosen."""

    describer: str
    why: str


def choose() -> Choice:
    """Vllm where there is a GPU and vLLM is installed, otherwise palette. Loads nothing and touches no GPU."""
    gpu = _gpu()
    if gpu is None:
        return Choice("palette", "no GPU was found, and an MLLM on a CPU takes minutes for each item")
    if importlib.util.find_spec("vllm") is None:
        return Choice("palette", f"there is {gpu}, but vLLM is not installed: pip install 'dmesr[vllm]'")
    return Choice("vllm", f"there is {gpu} and vLLM is installed")


def _gpu() -> str | None:
    if not sys.platform.startswith("linux"):
        return None  # vLLM runs on Linux
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return None
    devices = Path("/dev")
    if any(device.name[6:].isdigit() for device in devices.glob("nvidia*")):
        return "an NVIDIA GPU"
    if (devices / "kfd").exists():
        return "an AMD GPU"
    return None
