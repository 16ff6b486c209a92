from __future__ import annotations

from datetime import UTC, datetime

import pytest
from dmesr_server.control import Control, DescriptionRecipeRow
from dmesr_server.errors import ServiceError
from store_workers import in_threads


@pytest.fixture
def control(control_url):
    control = Control(control_url)
    control.migrate()
    yield control
    control.close()


def refused(act, *arguments) -> str:
    with pytest.raises(ServiceError) as caught:
        act(*arguments)
    return caught.value.reason


def test_catalogs_are_made_listed_and_dropped(control):
    assert control.catalogs.list() == []
    films = control.catalogs.create("films", "film", "de")
    games = control.catalogs.create("games", "video game", "en")
    assert control.catalogs.list() == [films, games]
    assert control.catalogs.get("films") == films
    assert (films.domain, films.language) == ("film", "de")
    assert abs((datetime.now(UTC) - films.create_time).total_seconds()) < 60
    assert refused(control.catalogs.create, "films", "x", "en") == "CATALOG_EXISTS"
    assert refused(control.catalogs.get, "nobody") == "CATALOG_NOT_FOUND"
    control.catalogs.drop("films")
    assert control.catalogs.list() == [games]
    assert refused(control.catalogs.drop, "films") == "CATALOG_NOT_FOUND"


def test_the_default_catalog_is_made_once(control):
    made = in_threads(control.catalogs.ensure_default, [()] * 6)
    assert len(set(made)) == 1
    assert made[0].name == "default"
    assert (made[0].domain, made[0].language) == ("item", "en")
    assert control.catalogs.list() == [made[0]]


def test_unknown_catalogs_are_never_made_by_the_way(control):
    for act, *arguments in (
        (control.recipes.save_description, "x", DescriptionRecipeRow("d", "text", {})),
        (control.recipes.save_embedding, "x", "e", {}, {}),
        (control.recipes.bind, "x", "default", "e"),
        (control.recipes.resolve, "x", "default"),
        (control.recipes.list, "x"),
        (control.jobs.create, "x", {}, "e", "d", "e"),
        (control.models.create, "x", "m", "d", "e", "{}", "/a"),
        (control.models.get, "x", "m"),
        (control.models.list, "x"),
        (control.aliases.promote, "x", "production", "m", 1),
        (control.aliases.rollback, "x", "production"),
        (control.aliases.resolve, "x", "production"),
        (control.aliases.list, "x"),
        (control.pins.create, "x", "e", 1, 60, "me", "tag"),
    ):
        assert refused(act, *arguments) == "CATALOG_NOT_FOUND", act
    assert control.catalogs.list() == []


def test_dropping_a_catalog_takes_all_of_it_and_nothing_else(control):
    for name in ("films", "games"):
        control.catalogs.create(name)
        control.recipes.save_embedding(name, "e", {}, {})
        control.recipes.bind(name, "default", "e")
        control.models.create(name, "m", "digest", "e", "{}", "/a")
        control.models.set_state(name, "m", 1, "READY")
        control.aliases.promote(name, "production", "m", 1)
        control.pins.create(name, "e", 1, -1, "me", name)
    gone = control.jobs.create("films", {}, "e", "d", "e")
    work = control.jobs.claim("me", 60)
    assert work.job.job_id == gone.job_id
    kept = control.jobs.create("games", {}, "e", "d", "e")
    control.catalogs.drop("films")
    assert refused(control.jobs.get, gone.job_id) == "JOB_NOT_FOUND"
    assert refused(control.jobs.progress, gone.job_id, work.lease, {}) == "JOB_NOT_FOUND"
    assert [job.job_id for job in control.jobs.list()] == [kept.job_id]
    assert [pin.tag for pin in control.pins.expired()] == ["games"]
    control.catalogs.create("films")
    assert control.recipes.list("films") == control.models.list("films") == control.aliases.list("films") == []
    assert control.models.get("games", "production").version == 1
    assert control.recipes.resolve("games", "default").recipe_id == "e"
