"""What a benchmark writes: a list of figures, each beside its peer where it has one."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: "part/figure"; a part replaces its own rows only.
        value: Ours.
        unit: Of value and peer.
        how: What was measured, how often, on what.
        peer: What it is held against, measured in the same run; None where a figure stands alone.
        target: Of the ratio where there is a peer, otherwise of the value; None for what is only reported.
        better: Which way is good.
    """

    name: str
    value: float
    unit: str
    how: str
    peer: float | None = None
    target: float | None = None
    better: Literal["higher", "lower"] = "higher"

    @property
    def ratio(self) -> float | None:
        """Value over peer."""
        return self.value / self.peer if self.peer else None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        judged = self.value if self.ratio is None else self.ratio
        return judged >= self.target if self.better == "higher" else judged <= self.target

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        ratio = None if self.ratio is None else float(f"{self.ratio:.4g}")
        peer = None if self.peer is None else _rounded(self.peer)
        return {**asdict(self), "value": _rounded(self.value), "peer": peer, "ratio": ratio}


def read(file: Path) -> list[Row]:
    """The rows of an earlier run; none where there was none."""
    if not file.exists():
        return []
    names = Row.__dataclass_fields__
    return [Row(**{key: value for key, value in row.items() if key in names}) for row in json.loads(file.read_text())]


def merge(file: Path, rows: Sequence[Row]) -> None:
    """Puts rows in the place of the earlier ones of the same parts; rows of other parts stay."""
    parts = {row.name.split("/")[0] for row in rows}
    kept = [row for row in read(file) if row.name.split("/")[0] not in parts]
    merged = sorted([*kept, *rows], key=lambda row: row.name.split("/")[0])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([row.to_json() for row in merged], indent=2, ensure_ascii=False) + "\n")


def table(rows: Sequence[Row]) -> str:
    """The rows for a terminal."""
    lines = [("name", "value", "peer", "ratio", "target", "")]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        sign = "≥" if row.better == "higher" else "≤"
        target = "" if row.target is None else f"{sign} {row.target:g}"
        peer = "" if row.peer is None else f"{row.peer:,.4g}"
        verdict = {None: "", True: "met", False: "MISSED"}[row.met]
        lines.append((row.name, f"{row.value:,.5g} {row.unit}", peer, ratio, target, verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def machine(*packages: str) -> str:
    """What a figure was taken on: cores, load, Python and packages."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in packages if _installed(package))
    load = "/".join(f"{average:.2f}" for average in os.getloadavg())
    return f"{cores} CPU cores ({_cpu()}), load {load} at the start, Python {platform.python_version()}, {versions}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
