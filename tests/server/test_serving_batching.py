"""Micro-batches: who is answered with whom, and that nobody suffers for another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_artefact
from dmesr_server.errors import ServiceError
from dmesr_server.serving import index, towers
from dmesr_server.serving.artefact import load
from dmesr_server.serving.batching import MicroBatcher
from dmesr_server.serving.recommender import Question, ServedModel, Settings, recommend
from dmesr_server.serving.towers import UserTower

HOW = Settings(k=3)


class CountingTower(UserTower):
    """A user tower that remembers how many users each of its runs was for."""

    runs: list[int]

    def run(self, vectors_BTV: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        self.runs.append(len(lengths_B))
        return super().run(vectors_BTV, lengths_B)


@pytest.fixture
def served(tmp_path: Path) -> Callable[..., ServedModel]:
    def make(name: str) -> ServedModel:
        items = {f"i{row:02d}": (row, None) for row in range(40)}
        artefact = load(tiny_artefact.write(tmp_path / name, recipe_id="r", items=items), verify_checksums=True)
        tower = towers.load_user_tower(artefact, threads=1)
        tower.__class__, tower.runs = CountingTower, []
        vectors_NV = np.random.default_rng(1).normal(size=(40, tiny_artefact.V)).astype(np.float32)
        vectors_NV[39] = [1.5e38, 0, 0, 0, 0]  # three of it are more than a float32 can hold
        return ServedModel(
            catalog="c",
            name=name,
            version=1,
            artefact=artefact,
            user_tower=tower,
            index=index.indexed(list(items), vectors_NV, artefact.learned.counts_N.copy()),
            table_version=1,
        )

    return make


async def test_what_waits_while_one_is_answered_is_answered_together(served: Callable[..., ServedModel]):
    model, batcher = served("one"), MicroBatcher(max_questions=8)
    histories = [[f"i{row:02d}", "nobody"] for row in range(12)]
    answers = await asyncio.gather(*(batcher.ask(model, Question(history, HOW)) for history in histories))
    # The first finds nothing running; the others come before the loop can hear that it is done.
    assert model.user_tower.runs == [1, 8, 3]
    for history, ranked in zip(histories, answers, strict=True):
        (alone,) = recommend(model, [history], HOW)
        assert [scored.item_id for scored in ranked.items] == [scored.item_id for scored in alone.items]
        assert ranked.unknown_item_ids == ("nobody",)
    model.user_tower.runs.clear()
    for history in histories[:3]:  # one at a time: none waits for company
        await batcher.ask(model, Question(history, HOW))
    assert model.user_tower.runs == [1, 1, 1]


async def test_models_do_not_mix_and_take_turns(served: Callable[..., ServedModel]):
    one, two, batcher = served("one"), served("two"), MicroBatcher(max_questions=4)
    models = [one] * 9 + [two]
    done: list[ServedModel] = []

    async def ask(model: ServedModel) -> None:
        await batcher.ask(model, Question(["i00"], HOW))
        done.append(model)

    await asyncio.gather(*map(ask, models))
    assert (one.user_tower.runs, two.user_tower.runs) == ([1, 4, 4], [1])
    assert done.index(two) == 5, "behind one batch of the other model, not behind all of its questions"


async def test_a_history_that_the_tower_cannot_take_fails_alone(served: Callable[..., ServedModel]):
    model, batcher = served("one"), MicroBatcher(max_questions=8)
    histories = [["i01"], ["i02"], ["i39"] * 3, ["i03"]]
    answers = await asyncio.gather(
        *(batcher.ask(model, Question(history, HOW)) for history in histories), return_exceptions=True
    )
    assert isinstance(answers[2], ServiceError)
    assert answers[2].reason == "INVALID_ARTEFACT"
    assert [len(ranked.items) for place, ranked in enumerate(answers) if place != 2] == [3, 3, 3]


async def test_who_has_gone_away_is_not_worked_for(served: Callable[..., ServedModel]):
    model, batcher = served("one"), MicroBatcher(max_questions=8)
    tasks = [asyncio.create_task(batcher.ask(model, Question([f"i{row:02d}"], HOW))) for row in range(6)]
    await asyncio.sleep(0)
    for task in tasks[2:5]:
        task.cancel()
    kept = await asyncio.gather(tasks[0], tasks[1], tasks[5])
    assert all(len(ranked.items) == 3 for ranked in kept)
    assert model.user_tower.runs == [1, 2]


async def test_a_batch_holds_the_version_that_was_asked(served: Callable[..., ServedModel]):
    model, batcher = served("one"), MicroBatcher(max_questions=8)
    less = replace(model, index=model.index.without([f"i{row:02d}" for row in range(30)]))
    first, second, third = await asyncio.gather(
        batcher.ask(model, Question(["i35"], Settings(k=99))),
        batcher.ask(less, Question(["i35"], Settings(k=99))),
        batcher.ask(model, Question(["i35"], Settings(k=99))),
    )
    assert [len(ranked.items) for ranked in (first, second, third)] == [39, 9, 39]
