"""What a check of the server's stores finds."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from dmesr.transport import Rpc, Transport
from dmesr.v1 import admin_pb2

CHECK = Rpc("AdminService/CheckStore", admin_pb2.CheckStoreRequest, admin_pb2.CheckStoreResponse, idempotent=True)


class FindingSeverity(enum.StrEnum):
    """How bad a finding is."""

    FAULT = "FAULT"  # something is lost, wrong, or points to what is not there
    LEFTOVER = "LEFTOVER"  # nothing points to it any more: it costs disk and nothing else


@dataclass(frozen=True)
class StoreFinding:
    """Something that a check has found."""

    kind: str  # what it is, in UPPER_SNAKE: docs/operations.md lists them
    severity: FindingSeverity
    catalog: str  # empty where it is about none
    place: str  # the table, model, alias, job or folder
    count: int  # rows, files or records
    examples: tuple[str, ...]  # some of them
    problem: str
    remedy: str


@dataclass(frozen=True)
class StoreReport:
    """What a check has looked at and found."""

    catalogs: int
    tables: int  # that could be read
    rows: int
    models: int  # whose files were looked at
    findings: tuple[StoreFinding, ...]  # faults first

    @property
    def sound(self) -> bool:
        """Whether there is no fault. What is left over costs disk and nothing else."""
        return not any(one.severity is FindingSeverity.FAULT for one in self.findings)


async def check_store(transport: Transport, *, catalog: str, quick: bool) -> StoreReport:
    """See :meth:`dmesr.admin.Admin.check_store`."""
    report = admin_pb2.StoreReport()
    async for told in transport.stream(CHECK, admin_pb2.CheckStoreRequest(catalog=catalog, quick=quick)):
        report = told.report
    return StoreReport(
        catalogs=report.catalogs,
        tables=report.tables,
        rows=report.rows,
        models=report.models,
        findings=tuple(_finding(one) for one in report.findings),
    )


def _finding(one: admin_pb2.StoreFinding) -> StoreFinding:
    return StoreFinding(
        kind=one.kind,
        severity=FindingSeverity(admin_pb2.FindingSeverity.Name(one.severity).removeprefix("FINDING_SEVERITY_")),
        catalog=one.catalog,
        place=one.place,
        count=one.count,
        examples=tuple(one.examples),
        problem=one.problem,
        remedy=one.remedy,
    )
