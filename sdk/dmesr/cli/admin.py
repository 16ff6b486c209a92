"""`dmesr-cli store` and `dmesr-cli server`: what the tables hold, and what the server is."""

from __future__ import annotations

import typer

from .console import connected, print_line, print_table, show
from .options import command, group

store = group("store", "Look into the store.", examples=["dmesr-cli store stats --catalog films"])
server = group("server", "Ask what the server is.", examples=["dmesr-cli server info"])


@command(store, "stats", examples=["dmesr-cli store stats", "dmesr-cli store stats --catalog films --json"])
def stats(ctx: typer.Context) -> None:
    """Show rows, versions, bytes and files of the catalog's tables."""
    with connected(ctx) as client:
        found = client.admin.store_stats()

    def people() -> None:
        print_line(f"store {found.uri}")
        print_table(
            ["table", "rows", "version", "bytes", "files"],
            [(one.name, one.rows, one.version, one.bytes, one.files) for one in found.tables],
            right=["rows", "version", "bytes", "files"],
        )

    show(ctx, found, people)


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
        print_line(f"workers: {found.workers}")
        print_line()
        limits = {name: getattr(found.limits, name) for name in found.limits.__dataclass_fields__}
        print_table(["limit", "value"], limits.items(), right=["value"])
        print_line()
        print_table(["package", "version"], sorted(found.packages.items()))

    show(ctx, found, people)
