"""What `models show` prints: the chain from the catalogue to the aliases, and what has come loose in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .console import print_line, print_table

if TYPE_CHECKING:
    import dmesr

_BASES = {
    "TRAINED": "counted from the vectors that it was trained on",
    "PUBLISHED": "counted from the vectors at its publication; those that it was trained on were gone by then",
}
_ACTIONS = {"PROMOTED": "promoted", "ROLLED_BACK": "rolled back"}
_NOT_RECORDED = "not recorded"


def state_line(model: dmesr.Model) -> str:
    """Where a model stands, in one line."""
    aliases = f", {', '.join(model.aliases)}" if model.aliases else ""
    return f"{model.ref}: {model.state.name.lower()}, {model.items_adapted:,} items adapted{aliases}"


def print_chain(model: dmesr.Model) -> None:
    """Prints a model whose lineage was asked for."""
    print_line(state_line(model))
    if model.problem is not None:
        print_line(f"problem: {model.problem}")
    traced = model.lineage
    for line in () if traced is None else warnings(model, traced):
        print_line(f"warning: {line}")
    manifest = model.manifest
    print_table(["", ""], _facts(model, traced))
    if traced is not None:
        _print_coverage(traced)
    _print_flat("training configuration", _of(manifest, "training").get("config"))
    _print_flat("metric", manifest.get("metrics"), right=True)
    if traced is not None:
        _print_moves(model, traced)


def warnings(model: dmesr.Model, traced: dmesr.Lineage) -> Iterator[str]:
    """What has come loose since the model was trained."""
    if traced.recipe_gone:
        yield (
            f"its recipe {model.recipe_id} or the vectors of it are gone: it answers with what was adapted, but new "
            "items are not taken in, and it cannot be trained again; restore the store or train on another recipe"
        )
    drift = traced.drift
    if drift is not None and drift.drifted:
        yield (
            f"its items have drifted: of {drift.items_now:,} with vectors {drift.added:,} are new and "
            f"{drift.changed:,} changed, and of {drift.items_then:,} from then {drift.removed:,} are gone "
            f"({_BASES.get(drift.basis, drift.basis)}); train again when that is much"
        )


def _facts(model: dmesr.Model, traced: dmesr.Lineage | None) -> list[tuple[str, object]]:
    manifest = model.manifest
    training, versions = _of(manifest, "training"), _of(manifest, "versions")
    facts: list[tuple[str, object]] = []
    if traced is not None:
        at = f"version {traced.items_version}, {traced.items:,} items" if traced.items_version else _NOT_RECORDED
        names = f" ({', '.join(traced.recipe_names)})" if traced.recipe_names else ""
        facts += [
            ("catalogue", f"{at} when published; {traced.items_now:,} items now"),
            ("recipe", f"{model.recipe_id or 'none'}{names}{', GONE' if traced.recipe_gone else ''}"),
            ("embeddings", f"version {traced.embedding_version}, digest {traced.embedding_digest or _NOT_RECORDED}"),
            ("drift", _drift(traced)),
        ]
    else:
        facts.append(("recipe", model.recipe_id))
    facts += [
        ("method", manifest.get("method")),
        ("backbone", manifest.get("backbone")),
        ("sources", [f"{source['name']} ({source['dim']})" for source in manifest.get("sources", [])]),
        ("views", [f"{view['name']} [{view['start']}:{view['stop']}]" for view in manifest.get("views", [])]),
        ("vector width", manifest.get("vector_dim")),
        ("longest history", manifest.get("max_history")),
        ("training run", training.get("run_id") or _NOT_RECORDED),
        ("trained on", training.get("dataset", _NOT_RECORDED)),
        ("trained at", manifest.get("created", _NOT_RECORDED)),
        ("seed", training.get("seed", _NOT_RECORDED)),
        ("best epoch", _epoch(training)),
        ("code", training.get("git") or versions.get("dmesr", _NOT_RECORDED)),
        ("packages", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("digest", model.digest),
        ("published", f"{model.create_time} by {(traced.published_by if traced else '') or _NOT_RECORDED}"),
    ]
    return facts


def _drift(traced: dmesr.Lineage) -> str:
    drift = traced.drift
    if drift is None:
        return "cannot be told"
    if not drift.drifted:
        return f"none of {drift.items_now:,} items"
    return f"{drift.added:,} new, {drift.changed:,} changed, {drift.removed:,} gone; {drift.items_now:,} items now"


def _epoch(training: Mapping[str, Any]) -> object:
    return f"{training['best_epoch']} of {training.get('epochs')}" if "best_epoch" in training else _NOT_RECORDED


def _print_coverage(traced: dmesr.Lineage) -> None:
    then = {one.source: one for one in traced.coverage}
    now = {one.source: one for one in traced.coverage_now}
    if not then and not now:
        return
    rows = []
    for source in {**now, **then}:
        at, today = then.get(source), now.get(source)
        rows.append(
            (
                source,
                *((at.described, at.failed, at.vectors) if at is not None else ("", "", "")),
                *((today.described, today.failed, today.vectors) if today is not None else ("", "", "")),
            )
        )
    figures = ["described", "failed", "vectors", "described now", "failed now", "vectors now"]
    print_line()
    print_table(["source", *figures], rows, right=figures)


def _print_moves(model: dmesr.Model, traced: dmesr.Lineage) -> None:
    if not traced.moves:
        return
    rows = []
    for move in traced.moves:
        came = move.model == model.ref
        other = move.before if came else move.model
        how = _ACTIONS.get(move.action, move.action.lower())
        what = f"{how} to it" if came else f"{how} away from it"
        rows.append((move.move_time, move.alias, what, other or "", move.actor or _NOT_RECORDED))
    print_line()
    print_table(["when", "alias", "what", "other model", "by"], rows)


def _print_flat(title: str, values: object, *, right: bool = False) -> None:
    rows = _flat(values) if isinstance(values, dict) and values else []
    if rows:
        print_line()
        print_table([title, "value"], rows, right=["value"] if right else [])


def _flat(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(values, dict):
        return [(prefix, values)]
    return [row for key, value in values.items() for row in _flat(value, f"{prefix}.{key}" if prefix else str(key))]


def _of(manifest: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = manifest.get(key)
    return found if isinstance(found, dict) else {}
