"""What a job would do and cost, by the rates of jobs that were done before. Changes nothing, loads no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmesr_server.config import Config
from dmesr_server.control import Control, JobRow
from dmesr_server.store import CatalogStore

from . import planning, specs
from .planning import ItemPlan, Scope
from .progress import RouteCost
from .routes import ORIGINAL
from .specs import JobSpec, Means

_JOBS_LOOKED_AT = 200
_JOBS_USED = 20
# Where no earlier job tells: about what the describers write, and what a row has beside its text.
_TEXT_BYTES = 500
_ROW_BYTES = 700  # of a description: key, hashes, provenance
_HASH_BYTES = 64  # beside each vector


@dataclass
class RouteWork:
    """The work on one route (`RouteEstimate` of the wire)."""

    route: str
    applicable: int = 0
    reused: int = 0
    to_describe: int = 0
    to_encode: int = 0


@dataclass(frozen=True)
class Estimate:
    """What a job would do (`EstimateJobResponse` of the wire).

    Attributes:
        items: Items that it would look at.
        routes: The work by route, the original text first.
        seconds: Of work; None where no earlier job tells.
        tokens: To be read and written; None where no earlier job counted any.
        tokens_out: Those of `tokens` that are written.
        store_bytes: Of vectors and descriptions to be stored.
        basis: How the figures were got.
        sample_descriptions: Descriptions that time and tokens were measured on.
    """

    items: int
    routes: tuple[RouteWork, ...]
    seconds: float | None
    tokens: int | None
    tokens_out: int | None
    store_bytes: int
    basis: str
    sample_descriptions: int


@dataclass(frozen=True)
class _Rates:
    """What earlier jobs of the same describer and encoder took."""

    jobs: int
    same_recipe: bool  # False where only jobs with another model, other prompts or other settings tell
    routes: Mapping[str, RouteCost]
    describe_seconds: float  # of all their descriptions together, side by side as they were made
    encode_seconds: float
    other_seconds: float  # neither describing nor encoding: loading, reading, writing
    items: int


def estimate(*, control: Control, config: Config, catalog: CatalogStore, name: str, spec: JobSpec) -> Estimate:
    """Estimates a job. Blocks while it looks at the hashes of every item in scope.

    Args:
        control: Earlier jobs and their rates.
        config: The server's describer and encoder.
        catalog: The catalog's tables.
        name: The catalog's name.
        spec: What would be done.

    Raises:
        ServiceError: CATALOG_NOT_FOUND, and what :func:`specs.means` raises.
    """
    means = specs.means(control=control, config=config, catalog=control.catalogs.get(name), spec=spec)
    scope = Scope(
        recipe=means.recipe,
        routes=means.routes,
        generates=means.describer.generates,
        retry_failed=spec.retry_failed,
    )
    work = {route: RouteWork(route) for route in (ORIGINAL, *means.routes)}
    items = chosen = 0
    rows = config.enrichment.batch_items
    for batch in planning.batches(catalog, item_ids=spec.item_ids, rows=rows):
        for plan in planning.plan_batch(batch, catalog=catalog, scope=scope):
            if spec.limit and chosen == spec.limit:
                break
            chosen += plan.needs_work
            items += 1
            _add(work, plan)
        if spec.limit and chosen == spec.limit:
            break
    rates = _rates(control, means)
    tokens = _tokens(work, rates, lambda cost: cost.tokens)
    return Estimate(
        items=items,
        routes=tuple(work.values()),
        seconds=_seconds(work, rates, items=items),
        tokens=tokens,
        tokens_out=None if tokens is None else _tokens(work, rates, lambda cost: cost.tokens_out),
        store_bytes=_store_bytes(work, rates, dim=means.encoder.dim),
        basis=_basis(rates, describer=means.describer.name, encoder=means.encoder_name),
        sample_descriptions=0 if rates is None else sum(cost.described for cost in rates.routes.values()),
    )


def _add(work: Mapping[str, RouteWork], plan: ItemPlan) -> None:
    for route, count in plan.counts.items():
        each = work[route]
        each.applicable += count.applicable
        each.reused += count.reused
        if route in plan.describe:
            each.to_describe += 1
            each.to_encode += 1
        elif route in plan.vectors and plan.vectors[route].text is not None:
            each.to_encode += 1


def _rates(control: Control, means: Means) -> _Rates | None:
    """The rates of the newest jobs that did something by this recipe, in any catalog.

    Where there are none, of those with the same describer and encoder: another model or prompt, so less telling.
    """
    alike: list[JobRow] = []
    for job in control.jobs.list(None, page_size=_JOBS_LOOKED_AT):
        worked = any(route.get("encoded") or route.get("described") for route in job.progress.get("routes", []))
        if job.state.ended and worked and (job.describer, job.encoder) == (means.describer.name, means.encoder_name):
            alike.append(job)
    of_recipe = [job for job in alike if job.recipe_id == means.recipe.recipe_id]
    same = bool(of_recipe) and (_described(of_recipe) or not _described(alike))
    used = (of_recipe if same else alike)[:_JOBS_USED]
    if not used:
        return None
    total: dict[str, RouteCost] = {}
    describe = encode = other = 0.0
    for job in used:
        rates: Mapping[str, Any] = job.progress.get("rates", {})
        describe += rates.get("describe_seconds", 0.0)
        encode += rates.get("encode_seconds", 0.0)
        busy = max(rates.get("describe_seconds", 0.0), rates.get("encode_seconds", 0.0))
        other += max(0.0, rates.get("seconds", 0.0) - busy)
        for route, cost in rates.get("routes", {}).items():
            _sum(total.setdefault(route, RouteCost()), cost)
    return _Rates(
        jobs=len(used),
        same_recipe=same,
        routes=total,
        describe_seconds=describe,
        encode_seconds=encode,
        other_seconds=other,
        items=sum(job.progress.get("items_done", 0) for job in used),
    )


def _described(jobs: Sequence[JobRow]) -> bool:
    """Whether any of them described something, rather than encoded only."""
    return any(route.get("described") for job in jobs for route in job.progress.get("routes", []))


def _sum(total: RouteCost, cost: Mapping[str, Any]) -> None:
    for name, value in cost.items():
        if hasattr(total, name):
            setattr(total, name, getattr(total, name) + value)


def _seconds(work: Mapping[str, RouteWork], rates: _Rates | None, *, items: int) -> float | None:
    """Describing and encoding overlap, so the longer one counts; reading and writing come on top."""
    if rates is None:
        return None
    describe = _describe_seconds(work, rates)
    encode = _encode_seconds(work, rates)
    if describe is None or encode is None:
        return None
    if not any(each.to_describe or each.to_encode for each in work.values()):
        return 0.0
    return max(describe, encode) + rates.other_seconds * items / max(rates.items, items, 1)


def _describe_seconds(work: Mapping[str, RouteWork], rates: _Rates) -> float | None:
    wanted = {route: each.to_describe for route, each in work.items() if each.to_describe}
    known = {route: cost for route, cost in rates.routes.items() if cost.described}
    if not wanted:
        return 0.0
    if not known:
        return None
    # Calls run side by side: what the clock showed is shared out by the time that each route's calls took.
    side_by_side = rates.describe_seconds / max(sum(cost.milliseconds for cost in known.values()), 1e-9)
    each = {route: side_by_side * cost.milliseconds / cost.described for route, cost in known.items()}
    return sum(count * each.get(route, max(each.values())) for route, count in wanted.items())


def _encode_seconds(work: Mapping[str, RouteWork], rates: _Rates) -> float | None:
    wanted = {route: each.to_encode for route, each in work.items() if each.to_encode}
    known = {route: cost for route, cost in rates.routes.items() if cost.encoded}
    if not wanted:
        return 0.0
    if not known:
        return None
    per_character = rates.encode_seconds / max(sum(cost.characters for cost in known.values()), 1)
    length = {route: cost.characters / cost.encoded for route, cost in known.items()}
    return sum(per_character * count * length.get(route, max(length.values())) for route, count in wanted.items())


def _tokens(work: Mapping[str, RouteWork], rates: _Rates | None, counted: Callable[[RouteCost], int]) -> int | None:
    known = {} if rates is None else {route: cost for route, cost in rates.routes.items() if cost.tokens}
    if not known:
        return None
    mean = {route: counted(cost) / cost.described for route, cost in known.items()}
    return round(sum(each.to_describe * mean.get(route, max(mean.values())) for route, each in work.items()))


def _store_bytes(work: Mapping[str, RouteWork], rates: _Rates | None, *, dim: int) -> int:
    total = 0.0
    for route, each in work.items():
        total += each.to_encode * (4 * dim + _HASH_BYTES)
        cost = rates.routes.get(route) if rates is not None else None
        text = cost.text_bytes / cost.described if cost is not None and cost.described else _TEXT_BYTES
        total += each.to_describe * (_ROW_BYTES + text)
    return round(total)


def _basis(rates: _Rates | None, *, describer: str, encoder: str) -> str:
    bytes_basis = "bytes from the vectors' width and the length of texts"
    if rates is None:
        return (
            f"No earlier job with the describer {describer} and the encoder {encoder} tells the time: run one with a "
            f"limit of 50, then estimate again. {bytes_basis.capitalize()}."
        )
    described = sum(cost.described for cost in rates.routes.values())
    encoded = sum(cost.encoded for cost in rates.routes.values())
    speeds = [
        f"{_per_second(described, rates.describe_seconds)} descriptions/s" if described else "",
        f"{_per_second(encoded, rates.encode_seconds)} texts/s encoded" if encoded else "",
    ]
    jobs = "1 earlier job" if rates.jobs == 1 else f"{rates.jobs} earlier jobs"
    measured = f", measured on {described:,} descriptions" if described else ""
    other = "" if rates.same_recipe else " Model, prompts or settings were others then: run a limit of 50 first."
    return (
        f"By the rates of {jobs} with the describer {describer} and the encoder {encoder} "
        f"({', '.join(filter(None, speeds))}{measured}); {bytes_basis}.{other}"
    )


def _per_second(count: int, seconds: float) -> str:
    return f"{count / max(seconds, 1e-3):.3g}"
