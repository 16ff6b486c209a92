from __future__ import annotations

import pytest
from dmesr_server.control import Control, ModelState
from dmesr_server.errors import ServiceError
from store_workers import in_processes, in_threads, publish


@pytest.fixture
def control(control_url):
    control = Control(control_url)
    control.migrate()
    control.catalogs.ensure_default()
    control.catalogs.create("films")
    yield control
    control.close()


def create(control, digest, name="dmesr", catalog="films", ready=True):
    model = control.models.create(catalog, name, digest, "e1", '{"method":"dmesr"}', "/a")
    if ready:
        control.models.set_state(catalog, name, model.version, "READY")
    return model


def refused(act, *arguments) -> str:
    with pytest.raises(ServiceError) as caught:
        act(*arguments)
    return caught.value.reason


def test_versions_are_counted_for_each_name(control):
    assert [create(control, digest).version for digest in "abc"] == [1, 2, 3]
    assert create(control, "a", name="other").ref == "other:1"
    assert create(control, "a", catalog="default").version == 1


def test_the_same_artefact_is_the_same_model(control):
    first = create(control, "a", ready=False)
    create(control, "b")
    assert create(control, "a", ready=False) == first
    assert (first.state, first.problem, first.aliases) == (ModelState.ADAPTING, None, ())
    assert (first.digest, first.manifest_json, first.artefact_path) == ("a", '{"method":"dmesr"}', "/a")


def test_the_path_may_be_made_of_the_version(control):
    for version in (1, 2):
        model = control.models.create("films", "m", f"d{version}", "e", "{}", lambda number: f"/store/m/{number}")
        assert model.artefact_path == f"/store/m/{version}"


def test_versions_are_never_used_twice(control):
    create(control, "a")
    create(control, "b")
    control.models.delete("films", "dmesr", 2)
    assert create(control, "b").version == 3


def test_models_by_alias_name_and_version(control):
    for digest in "abc":
        create(control, digest)
    control.aliases.promote("films", "production", "dmesr", 2)
    assert control.models.get("films", "production").version == 2
    assert control.models.resolve("films", "dmesr").version == 3, "a name is its newest version"
    assert control.models.get("films", "dmesr:1").version == 1
    assert control.models.get("films", "dmesr:2").aliases == ("production",)
    for ref in (
        "nobody",
        "dmesr:4",
        "dmesr:",
        "dmesr:x",
        ":1",
        "",
        "dmesr:99999999999999999999",
        "dmesr:-1",
        "dmesr:1:1",
    ):
        assert refused(control.models.get, "films", ref) == "MODEL_NOT_FOUND", ref
    assert refused(control.models.get, "default", "dmesr") == "MODEL_NOT_FOUND"


def test_states_and_problems(control):
    create(control, "a", ready=False)
    problem = {"reason": "INVALID_ARTEFACT", "message": "no", "metadata": {}}
    failed = control.models.set_state("films", "dmesr", 1, "FAILED", problem)
    assert (failed.state, failed.problem) == (ModelState.FAILED, problem)
    assert control.models.set_state("films", "dmesr", 1, "READY").problem is None
    assert refused(control.models.set_state, "films", "dmesr", 9, "READY") == "MODEL_NOT_FOUND"


def test_lists_are_newest_first_and_page(control):
    for digest in "abcde":
        create(control, digest)
    create(control, "x", catalog="default")
    assert [model.ref for model in control.models.list("films")] == [f"dmesr:{n}" for n in (5, 4, 3, 2, 1)]
    assert [model.ref for model in control.models.list("films", 2, "dmesr:4")] == ["dmesr:3", "dmesr:2"]
    for token in ("dmesr:9", "rubbish", ""):
        assert refused(control.models.list, "films", 2, token) == "INVALID_PAGE_TOKEN"


def test_live_models(control):
    create(control, "a")
    create(control, "b", ready=False)
    create(control, "c")
    create(control, "d", catalog="default")
    control.aliases.promote("films", "production", "dmesr", 3)
    control.models.set_state("films", "dmesr", 3, "FAILED", {})
    control.models.set_state("films", "dmesr", 1, "FAILED", {})
    assert [model.version for model in control.models.live("films")] == [2, 3], "aliased ones, failed or not"
    assert [(model.catalog, model.version) for model in control.models.live()] == [
        ("films", 2),
        ("films", 3),
        ("default", 1),
    ]


def test_only_ready_models_are_promoted(control):
    create(control, "a", ready=False)
    assert refused(control.aliases.promote, "films", "production", "dmesr", 1) == "MODEL_NOT_READY"
    control.models.set_state("films", "dmesr", 1, "FAILED", {})
    assert refused(control.aliases.promote, "films", "production", "dmesr", 1) == "MODEL_NOT_READY"
    assert refused(control.aliases.promote, "films", "production", "dmesr", 2) == "MODEL_NOT_FOUND"
    assert refused(control.aliases.resolve, "films", "production") == "ALIAS_NOT_FOUND"
    assert refused(control.aliases.rollback, "films", "production") == "ALIAS_NOT_FOUND"


def test_rolling_back_goes_the_way_of_the_promotions(control):
    for digest in "abc":
        create(control, digest)
    for version in (1, 2, 2, 3):
        assert control.aliases.promote("films", "production", "dmesr", version).version == version
    control.aliases.promote("films", "candidate", "dmesr", 1)
    assert control.aliases.rollback("films", "production").ref == "dmesr:2"
    assert control.aliases.resolve("films", "production").version == 2
    assert control.aliases.rollback("films", "production").version == 1
    assert refused(control.aliases.rollback, "films", "production") == "NO_EARLIER_MODEL"
    assert refused(control.aliases.rollback, "films", "candidate") == "NO_EARLIER_MODEL"
    control.aliases.promote("films", "production", "dmesr", 3)
    assert control.aliases.rollback("films", "production").version == 1
    assert [(alias.alias, alias.ref) for alias in control.aliases.list("films")] == [
        ("candidate", "dmesr:1"),
        ("production", "dmesr:1"),
    ]


def test_models_in_use_stay(control):
    for digest in "abc":
        create(control, digest)
    for version in (1, 2, 3):
        control.aliases.promote("films", "production", "dmesr", version)
    assert refused(control.models.delete, "films", "dmesr", 3) == "MODEL_IN_USE"
    deleted = control.models.delete("films", "dmesr", 2)
    assert (deleted.ref, deleted.artefact_path) == ("dmesr:2", "/a")
    assert refused(control.models.delete, "films", "dmesr", 2) == "MODEL_NOT_FOUND"
    assert control.aliases.rollback("films", "production").version == 1, "a deleted model is passed over"
    assert control.models.delete("films", "dmesr", 3).version == 3


def test_threads_and_processes_publish_at_once(control_url, control):
    versions = [v for each in in_threads(publish, [(control_url, f"t{n}", 5) for n in range(5)]) for v in each]
    versions += [v for each in in_processes(publish, [(control_url, f"p{n}", 5) for n in range(2)]) for v in each]
    assert sorted(versions) == list(range(1, 36))


def test_threads_publish_the_same_artefact(control):
    models = in_threads(lambda _: create(control, "same", ready=False), [(n,) for n in range(8)])
    assert {model.ref for model in models} == {"dmesr:1"}


def test_readers_never_see_an_alias_half_moved(control):
    for digest in "ab":
        create(control, digest)
    control.aliases.promote("films", "production", "dmesr", 1)

    def move(_: int) -> list[int]:
        return [
            control.aliases.promote("films", "production", "dmesr", 2).version,
            control.aliases.rollback("films", "production").version,
        ]

    def read(_: int) -> set[int]:
        return {control.models.get("films", "production").version for _ in range(20)}

    seen = in_threads(lambda act, number: act(number), [(move, 0), (read, 1), (read, 2), (read, 3)])
    assert seen[0] == [2, 1]
    assert set().union(*seen[1:]) <= {1, 2}
