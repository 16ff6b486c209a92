"""What a bulk write answers: counts, and each row that was not taken with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from dmesr.v1 import errors_pb2, items_pb2


@dataclass(frozen=True)
class Problem:
    """Why something was not taken or did not work."""

    reason: str  # a reason of `dmesr.errors`, for instance "PICTURE_UNREADABLE"
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)  # every variable of the message


@dataclass(frozen=True)
class RejectedRow:
    """A row, or a row's picture, that was not taken."""

    item_id: str  # as sent; empty where the row has none
    reason: str  # a reason of `dmesr.errors`, or of `dmesr.readers` for a row of a file
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)  # every variable of the message


@dataclass(frozen=True)
class UpsertSummary:
    """What happened to the rows of a bulk write."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: tuple[RejectedRow, ...] = ()
    picture_problems: tuple[RejectedRow, ...] = ()  # the row was taken, its picture was not

    @property
    def rows(self) -> int:
        """All rows that were looked at."""
        return self.inserted + self.updated + self.unchanged + len(self.rejected)


class RowCounter:
    """Adds up the answers to the batches of a bulk write."""

    def __init__(self) -> None:
        self._counts = UpsertSummary()
        self._rejected: list[RejectedRow] = []
        self._picture_problems: list[RejectedRow] = []

    def reject(self, row: RejectedRow) -> None:
        """Counts a row that did not even travel."""
        self._rejected.append(row)

    def reject_picture(self, row: RejectedRow) -> None:
        """Counts a picture that was not taken; its row goes on without."""
        self._picture_problems.append(row)

    def count(self, results: Sequence[items_pb2.RowResult]) -> None:
        """Counts the answer to one batch."""
        inserted = updated = unchanged = 0
        for result in results:
            match result.outcome:
                case items_pb2.ROW_OUTCOME_INSERTED:
                    inserted += 1
                case items_pb2.ROW_OUTCOME_UPDATED:
                    updated += 1
                case items_pb2.ROW_OUTCOME_UNCHANGED:
                    unchanged += 1
                case _:
                    self._rejected.append(rejected_row(result.item_id, result.problem))
            if result.HasField("picture_problem"):
                self._picture_problems.append(rejected_row(result.item_id, result.picture_problem))
        self._counts = replace(
            self._counts,
            inserted=self._counts.inserted + inserted,
            updated=self._counts.updated + updated,
            unchanged=self._counts.unchanged + unchanged,
        )

    def summary(self) -> UpsertSummary:
        """The counts so far."""
        return replace(self._counts, rejected=tuple(self._rejected), picture_problems=tuple(self._picture_problems))


def reason_name(reason: int) -> str:
    """The wire's reason as text; a reason that this version does not know as its number."""
    value = errors_pb2.ErrorReason.DESCRIPTOR.values_by_number.get(reason)
    return value.name.removeprefix("ERROR_REASON_") if value is not None else str(reason)


def rejected_row(item_id: str, problem: items_pb2.RowProblem) -> RejectedRow:
    """The wire's problem of one row."""
    return RejectedRow(item_id, reason_name(problem.reason), problem.message, dict(problem.metadata))


def to_problem(problem: items_pb2.RowProblem) -> Problem:
    """The wire's problem of anything else."""
    return Problem(reason_name(problem.reason), problem.message, dict(problem.metadata))


def to_time(timestamp: Timestamp) -> datetime | None:
    """A timestamp of the wire, in UTC; None where it is not set."""
    if timestamp.seconds == 0 and timestamp.nanos == 0:
        return None
    return timestamp.ToDatetime(tzinfo=UTC)
