"""`dmesr-cli store` and `dmesr-cli server`: what the tables hold, and what the server is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .console import connected, print_line, print_table, show
from .extras import of_extra
from .options import command, group

store = group(
    "store",
    "Look into the store, check it, compact it, copy it.",
    examples=["dmesr-cli store stats --catalog films", "dmesr-cli store snapshot monday"],
)
server = group("server", "Ask what the server is.", examples=["dmesr-cli server info"])


@command(store, "stats", examples=["dmesr-cli store stats", "dmesr-cli store stats --catalog films --json"])
def stats(ctx: typer.Context) -> None:
    """Show rows, versions, bytes and files of the catalog's tables."""
    with connected(ctx) as client:
        found = client.admin.store_stats()

    def people() -> None:
        print_line(f"store {found.uri}")
        print_table(
            ["table", "rows", "bytes", "files", "fragments", "versions", "version"],
            [
                (one.name, one.rows, one.bytes, one.files, one.fragments, one.versions, one.version)
                for one in found.tables
            ],
            right=["rows", "bytes", "files", "fragments", "versions", "version"],
        )

    show(ctx, found, people)


@command(store, "compact", examples=["dmesr-cli store compact", "dmesr-cli store compact --catalog films"])
def compact(ctx: typer.Context) -> None:
    """Compact the catalog's tables and drop old versions now; the server does so by itself when it is due."""
    with connected(ctx) as client:
        done = client.admin.compact_store()

    def people() -> None:
        print_table(
            ["table", "fragments", "files", "bytes"],
            [
                (
                    one.after.name,
                    f"{one.before.fragments} → {one.after.fragments}",
                    f"{one.before.files} → {one.after.files}",
                    f"{one.before.bytes} → {one.after.bytes}",
                )
                for one in done
            ],
            right=["fragments", "files", "bytes"],
        )

    show(ctx, done, people)


@command(
    store,
    "check",
    examples=["dmesr-cli store check", "dmesr-cli store check --about films --quick", "dmesr-cli store check --json"],
    catalog=False,
)
def check(
    ctx: typer.Context,
    about: Annotated[str, typer.Option(help="Only this catalog; all of them when not given.")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Follow pointers and count rows; read no vectors, pictures or models.")
    ] = False,
) -> None:
    """Look for what is damaged, missing or left over, while calls go on; changes nothing. Exits with 1 on a fault."""
    with connected(ctx) as client:
        report = client.admin.check_store(catalog=about, quick=quick)

    def people() -> None:
        for one in report.findings:
            place = f"{one.catalog} {one.place}".strip()
            print_line(f"{one.severity.value.lower()} {one.kind} in {place}: {one.problem}")
            print_line(f"  {one.count}: {', '.join(one.examples)}" + (", …" if one.count > len(one.examples) else ""))
            print_line(f"  to do: {one.remedy}")
        faults = sum(one.severity.value == "FAULT" for one in report.findings)
        print_line(
            f"{report.catalogs} catalogs, {report.tables} tables, {report.rows} rows, {report.models} models: "
            f"{faults} faults, {len(report.findings) - faults} leftovers"
        )

    show(ctx, report, people)
    if not report.sound:
        raise typer.Exit(1)


@command(
    store,
    "snapshot",
    examples=["dmesr-cli store snapshot monday", "dmesr-cli store snapshot monday --json"],
    catalog=False,
)
def snapshot(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A new folder under the server's folder of snapshots.")],
) -> None:
    """Copy all catalogs, the control database and the models into a folder on the server, while calls go on."""
    with connected(ctx) as client:
        made = client.admin.snapshot_store(name)

    def people() -> None:
        print_line(f"snapshot {made.folder}: {made.files} files, {made.bytes} bytes")
        _print_contents([(one.catalog, one.name, one.rows, one.digest) for one in made.tables])

    show(ctx, made, people)


@command(
    store,
    "restore",
    examples=["dmesr-cli store restore /srv/films-snapshots/monday --store /srv/films-again"],
    catalog=False,
)
def restore(
    ctx: typer.Context,
    snapshot: Annotated[Path, typer.Argument(help="The folder that `store snapshot` made, on this machine.")],
    store: Annotated[Path, typer.Option(help="The folder of the new store: empty, or not there yet.")],
) -> None:
    """Make a store of a snapshot, without a server; compared by counts and hashes before it appears."""
    done = of_extra("server", "store-restore")(snapshot=snapshot, store=store)

    def people() -> None:
        print_line(f"restored to {done['folder']}: {done['files']} files, {done['bytes']} bytes, all compared")
        _print_contents([(one["catalog"], one["name"], one["rows"], one["digest"]) for one in done["tables"]])

    show(ctx, done, people)


def _print_contents(rows: Sequence[tuple[str, str, int, str]]) -> None:
    print_table(
        ["catalog", "table", "rows", "digest"],
        [(catalog, name, count, digest[:16]) for catalog, name, count, digest in rows],
        right=["rows"],
    )


@command(
    server,
    "info",
    examples=["dmesr-cli server info", "dmesr-cli server info --server gpu1:50051 --json"],
    catalog=False,
)
def info(ctx: typer.Context) -> None:
    """Show version, limits, describer, encoder and packages of the server."""
    with connected(ctx) as client:
        found = client.admin.server_info()

    def people() -> None:
        print_line(f"dmesr server {found.version}, store schema {found.schema_version}")
        print_line(f"describer {found.describer}" + ("" if found.describer_is_mllm else " (no multimodal LLM)"))
        print_line(f"encoder {found.encoder}")
        print_line(f"upserts start enrichment: {'yes' if found.auto_enrich else 'no'}")
        print_line(f"enrichers alive: {found.live_enrichers}")
        print_line(f"workers: {found.workers}" + (", read only" if found.read_only else ""))
        print_line(f"calls need a token: {'yes' if found.needs_token else 'no'}")
        print_line()
        limits = {name: getattr(found.limits, name) for name in found.limits.__dataclass_fields__}
        print_table(["limit", "value"], limits.items(), right=["value"])
        print_line()
        print_table(["package", "version"], sorted(found.packages.items()))

    show(ctx, found, people)
