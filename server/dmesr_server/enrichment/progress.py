"""What a job has done so far and how fast: the JSON that the control database keeps of it.

The wire shows items and routes; the rates are for later estimates (`estimating.py`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .planning import ItemPlan
from .routes import ORIGINAL


@dataclass
class RouteTally:
    """Counts of one route (`RouteProgress` of the wire)."""

    route: str
    applicable: int = 0
    described: int = 0
    reused: int = 0
    failed: int = 0
    encoded: int = 0


@dataclass
class RouteCost:
    """What the descriptions and vectors of one route took, this job's only.

    Attributes:
        described: Descriptions made.
        milliseconds: Their time as the describer states it; calls that run side by side all count.
        tokens: Read and written.
        tokens_out: Those of `tokens` that were written.
        text_bytes: UTF-8 bytes of the texts.
        encoded: Texts encoded.
        characters: Their characters: encoding takes about as long as texts are.
    """

    described: int = 0
    milliseconds: float = 0.0
    tokens: int = 0
    tokens_out: int = 0
    text_bytes: int = 0
    encoded: int = 0
    characters: int = 0


@dataclass
class Stopwatch:
    """Time during which at least one of several overlapping things was going on, in seconds."""

    seconds: float = 0.0
    _running: int = 0
    _since: float = 0.0

    def __enter__(self) -> None:
        if self._running == 0:
            self._since = time.monotonic()
        self._running += 1

    def __exit__(self, *_: object) -> None:
        self._running -= 1
        if self._running == 0:
            self.seconds += time.monotonic() - self._since


@dataclass
class Progress:
    """The counts of one job. Used by one event loop.

    Attributes:
        items_done: Items looked at and, where they needed work, finished.
        items_total: Items to look at.
        chosen: Items that needed work and were taken on, where the job has a limit.
        chosen_through: The last of these: after an interruption the same items are taken, not others.
        routes: Counts by route, the original text first.
        costs: By route.
        describing: Time during which descriptions were being made.
        encoding: Time during which texts were being encoded.
    """

    items_done: int = 0
    items_total: int = 0
    chosen: int = 0
    chosen_through: str = ""
    routes: dict[str, RouteTally] = field(default_factory=dict)
    costs: dict[str, RouteCost] = field(default_factory=dict)
    describing: Stopwatch = field(default_factory=Stopwatch)
    encoding: Stopwatch = field(default_factory=Stopwatch)
    _seconds_before: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    @classmethod
    def resumed(cls, routes: Sequence[str], kept: Mapping[str, Any]) -> Progress:
        """The progress of a job that starts, or goes on after an interruption.

        What a survey of the items finds out again (applicable, described, reused, failed) starts from zero.

        Args:
            routes: The routes in scope.
            kept: What the control database has of it; empty at the first start.
        """
        names = [ORIGINAL, *routes]
        encoded = {tally["route"]: tally["encoded"] for tally in kept.get("routes", [])}
        rates = kept.get("rates", {})
        costs = rates.get("routes", {})
        return cls(
            chosen=kept.get("chosen", 0),
            chosen_through=kept.get("chosen_through", ""),
            routes={name: RouteTally(name, encoded=encoded.get(name, 0)) for name in names},
            costs={name: RouteCost(**costs.get(name, {})) for name in names},
            describing=Stopwatch(rates.get("describe_seconds", 0.0)),
            encoding=Stopwatch(rates.get("encode_seconds", 0.0)),
            _seconds_before=rates.get("seconds", 0.0),
        )

    def planned(self, plan: ItemPlan) -> None:
        """Counts how an item stands before any work."""
        for route, count in plan.counts.items():
            tally = self.routes[route]
            tally.applicable += count.applicable
            tally.described += count.described
            tally.reused += count.reused
            tally.failed += count.failed
        if not plan.needs_work:
            self.items_done += 1

    def to_json(self) -> dict[str, Any]:
        """As the control database keeps it."""
        return {
            "items_done": self.items_done,
            "items_total": self.items_total,
            "chosen": self.chosen,
            "chosen_through": self.chosen_through,
            "routes": [asdict(tally) for tally in self.routes.values()],
            "rates": {
                "seconds": round(self._seconds_before + time.monotonic() - self._began, 3),
                "describe_seconds": round(self.describing.seconds, 3),
                "encode_seconds": round(self.encoding.seconds, 3),
                "routes": {route: asdict(cost) for route, cost in self.costs.items()},
            },
        }
