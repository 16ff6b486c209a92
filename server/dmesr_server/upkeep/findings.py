"""What a check of the store finds, and what to do about it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

_EXAMPLES = 5

#: A remedy of several findings.
RESTORE_CONTROL = "restore the control database from the snapshot that the tables are of"


class Severity(enum.Enum):
    """How bad a finding is."""

    FAULT = "fault"  # something is lost, wrong, or points to what is not there
    LEFTOVER = "leftover"  # nothing points to it any more: it costs disk and nothing else


@dataclass(frozen=True)
class Finding:
    """Something that a check has found.

    Attributes:
        kind: What it is, in UPPER_SNAKE; docs/operations.md lists them.
        severity: How bad it is.
        catalog: The catalog; empty where it is about none.
        place: The table, model, alias, job or folder.
        count: How many rows, files or records.
        examples: Some of them.
        problem: What is wrong, in a sentence.
        remedy: What to do.
    """

    kind: str
    severity: Severity
    catalog: str
    place: str
    count: int
    examples: tuple[str, ...]
    problem: str
    remedy: str


def fault(kind: str, *, catalog: str, place: str, about: Sequence[str], problem: str, remedy: str) -> Finding:
    """Something that must be mended.

    Args:
        kind: What it is.
        catalog: The catalog; empty for none.
        place: Where.
        about: The rows, files or records.
        problem: What is wrong with them.
        remedy: What to do.
    """
    return _finding(kind, Severity.FAULT, catalog, place, about, problem, remedy)


def leftover(kind: str, *, catalog: str, place: str, about: Sequence[str], problem: str, remedy: str) -> Finding:
    """Something that nobody needs. The arguments are those of :func:`fault`."""
    return _finding(kind, Severity.LEFTOVER, catalog, place, about, problem, remedy)


def _finding(
    kind: str, severity: Severity, catalog: str, place: str, about: Sequence[str], problem: str, remedy: str
) -> Finding:
    return Finding(
        kind=kind,
        severity=severity,
        catalog=catalog,
        place=place,
        count=len(about),
        examples=tuple(sorted(about)[:_EXAMPLES]),
        problem=problem,
        remedy=remedy,
    )
