"""What the descriptions of a recipe are like and what they took, by route: from the rows themselves.

Reads item by item, in order, and keeps nothing but sums.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dmesr_server.control import Control, RecipeRow
from dmesr_server.store import CatalogStore, DescriptionRow, StoredItem

from . import corrections, routes
from .corrections import Standing

_ITEMS_PER_READ = 1_000
_JOBS_LOOKED_AT = 200

# Scripts that are written without spaces, as in Chinese, Japanese, Thai or Khmer: each character counts as a word.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")


@dataclass
class RefinementTally:
    """Sums over the descriptions that were refined.

    Attributes:
        refined: How many there are.
        rounds: Rounds of review.
        draft_words: Different content words of their drafts.
        new_words: By revision: how many descriptions had it, and the new content words that it brought.
    """

    refined: int = 0
    rounds: int = 0
    draft_words: int = 0
    new_words: list[tuple[int, int]] = field(default_factory=list)

    def add(self, *, rounds: int, draft_words: int, new_words: Sequence[int]) -> None:
        """Counts one description."""
        self.refined += 1
        self.rounds += rounds
        self.draft_words += draft_words
        self.new_words += [(0, 0)] * (len(new_words) - len(self.new_words))
        for place, words in enumerate(new_words):
            texts, total = self.new_words[place]
            self.new_words[place] = (texts + 1, total + words)

    @property
    def gain(self) -> float:
        """New content words as a share of the drafts'."""
        return sum(words for _, words in self.new_words) / self.draft_words if self.draft_words else 0.0


@dataclass
class RouteTally:
    """Sums over the descriptions of one route (`RouteStats` of the wire).

    Attributes:
        route: The route.
        recipe_id: The description recipe.
        applicable: Items for which the route applies, or that have a text nonetheless.
        described: Those that have a text.
        stale: Those of `described` whose item has changed since.
        corrected: Those of `described` that a person corrected.
        words: Words of the texts.
        tokens_in: Tokens read for what describers made, corrected or not.
        tokens_out: Tokens written.
        tokens_cached: Those of `tokens_in` that a prefix cache saved.
        milliseconds: Time, each description by its own clock.
        failures: By reason.
        stop_reasons: Why generation ended.
        refinement: What refinement did.
    """

    route: str
    recipe_id: str
    applicable: int = 0
    described: int = 0
    stale: int = 0
    corrected: int = 0
    words: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    milliseconds: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    stop_reasons: Counter[str] = field(default_factory=Counter)
    refinement: RefinementTally = field(default_factory=RefinementTally)

    def add(self, item: StoredItem, standing: Standing | None) -> None:
        """Counts how an item stands."""
        has_text = standing is not None and standing.row.text is not None
        made_from = routes.input_hash(item, self.route)
        self.applicable += has_text or made_from is not None
        if standing is None:
            return
        row = standing.row
        if row.text is None:
            self.failures[row.failure_reason or "INTERNAL"] += 1
        else:
            self.described += 1
            self.stale += row.input_hash != (made_from or "")
            self.corrected += standing.is_corrected
            self.words += count_words(row.text)
        made = standing.replaced if standing.is_corrected else row
        if made is not None and made.text is not None:
            self._add_cost(made)

    def _add_cost(self, row: DescriptionRow) -> None:
        told = row.provenance
        self.tokens_in += told.get("tokens_in", 0)
        self.tokens_out += told.get("tokens_out", 0)
        self.tokens_cached += told.get("tokens_cached", 0)
        self.milliseconds += told.get("milliseconds", 0.0)
        if told.get("stop_reason"):
            self.stop_reasons[told["stop_reason"]] += 1
        refined = _refinement(told)
        if refined is not None:
            self.refinement.add(
                rounds=told.get("rounds", 0),
                draft_words=refined.get("draft_words", 0),
                new_words=refined.get("new_words", []),
            )


@dataclass(frozen=True)
class Statistics:
    """The figures of a recipe.

    Attributes:
        items: Items that were looked at: all of the catalog.
        routes: By route, in the usual order; of those that a job has to be asked for only where something is there.
        side_by_side: Descriptions that were made at a time, on average, in the jobs of this recipe; at least 1.
    """

    items: int
    routes: tuple[RouteTally, ...]
    side_by_side: float


def gather(*, control: Control, store: CatalogStore, recipe: RecipeRow) -> Statistics:
    """Reads every description of a recipe. Blocks.

    Args:
        control: The jobs that made them.
        store: The catalog's tables.
        recipe: The recipe.

    Raises:
        ServiceError: STORE_UNAVAILABLE.
    """
    recipe_ids = recipe.description_recipes
    tallies = {route: RouteTally(route, recipe_ids[route]) for route in routes.ordered(recipe_ids)}
    items = 0
    for batch in store.items.iterate(_ITEMS_PER_READ):
        item_ids = [item.item_id for item in batch]
        standing = corrections.read(store.descriptions, item_ids, recipe_ids.values())
        items += len(batch)
        for item in batch:
            of_item = standing.get(item.item_id, {})
            for route, tally in tallies.items():
                tally.add(item, of_item.get(route))
    told = [tally for tally in tallies.values() if tally.route in routes.ROUTES or tally.described or tally.failures]
    return Statistics(items=items, routes=tuple(told), side_by_side=_side_by_side(control, recipe))


def count_words(text: str) -> int:
    """Words of a text; of a script without spaces, its characters."""
    unspaced = 0 if text.isascii() else len(_UNSPACED.findall(text))
    spaced = _UNSPACED.sub(" ", text) if unspaced else text
    return unspaced + sum(any(map(str.isalnum, word)) for word in spaced.split())  # a dash is no word


def _refinement(told: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What refinement recorded beside the sampling."""
    sampling = told.get("sampling")
    if not sampling:
        return None
    refined = json.loads(sampling).get("refinement")
    return refined if isinstance(refined, dict) else None


def _side_by_side(control: Control, recipe: RecipeRow) -> float:
    """By the clocks of jobs: the time of all their descriptions over the time during which any was being made."""
    own = together = 0.0
    for job in control.jobs.list(recipe.catalog, page_size=_JOBS_LOOKED_AT):
        rates: Mapping[str, Any] = job.progress.get("rates", {})
        seconds = sum(cost.get("milliseconds", 0.0) for cost in rates.get("routes", {}).values()) / 1e3
        if job.recipe_id == recipe.recipe_id and seconds:
            own += seconds
            together += rates.get("describe_seconds", 0.0)
    return max(1.0, own / together) if together else 1.0
