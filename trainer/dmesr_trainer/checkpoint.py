"""The whole state of a training run between two epochs, in one safetensors file: tensors, and JSON in its header.

No pickle. Random numbers need no place in it: an epoch's draws depend on the seed and the epoch's number alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_FORMAT = "dmesr-checkpoint-1"
_SEPARATOR = "/"


@dataclass(frozen=True)
class Checkpoint:
    """What was read back.

    Attributes:
        tensors: By name: "model/…" and "optimiser/NUMBER/…".
        state: The optimiser's and the schedule's plain values, and what the caller kept.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]

    @property
    def kept(self) -> dict[str, Any]:
        """The caller's own values."""
        kept: dict[str, Any] = self.state["kept"]
        return kept

    def restore(
        self,
        *,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        """Puts everything back in place."""
        model.load_state_dict(self._under("model"))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in self._under("optimiser").items():
            number, key = name.split(_SEPARATOR, 1)
            moments.setdefault(int(number), {})[key] = value
        optimiser.load_state_dict({"state": moments, "param_groups": self.state["groups"]})
        schedule.load_state_dict(self.state["schedule"])

    def _under(self, prefix: str) -> dict[str, Tensor]:
        prefix += _SEPARATOR
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def write(
    path: Path,
    *,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    kept: dict[str, Any],
) -> None:
    """Writes a checkpoint; a kill leaves the old one or the new one, never half of one.

    Args:
        path: The file.
        model: Its state.
        optimiser: Its moments and settings.
        schedule: Of the learning rate.
        kept: Plain values of the caller.
    """
    whole = optimiser.state_dict()
    tensors = {f"model{_SEPARATOR}{name}": value for name, value in model.state_dict().items()}
    for number, moments in whole["state"].items():
        tensors |= {f"optimiser{_SEPARATOR}{number}{_SEPARATOR}{key}": value for key, value in moments.items()}
    state = {"groups": whole["param_groups"], "schedule": schedule.state_dict(), "kept": kept}
    write_tensors(path, tensors, metadata={"format": _FORMAT, "state": json.dumps(state)})


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        ValueError: The file is no checkpoint of this version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(
                    f"{path} is no checkpoint of this version ({metadata.get('format', 'no format')} where {_FORMAT} "
                    "is expected); delete it to train from the start"
                )
            return Checkpoint(
                tensors={name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                state=json.loads(metadata["state"]),
            )
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it to train from the start") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], *, metadata: dict[str, str]) -> None:
    """Writes a safetensors file in one move.

    Args:
        path: The file.
        tensors: On any device.
        metadata: The header's text.
    """
    partial = path.with_suffix(".partial")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, partial, metadata=metadata)
    partial.replace(path)
