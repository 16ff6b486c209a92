"""Tokens in memory: what is trusted while the control database cannot be read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dmesr_server.api import credentials
from dmesr_server.api.access import Scope
from dmesr_server.api.credentials import NewToken, TokenBook
from dmesr_server.control import Control
from dmesr_server.errors import ServiceError


@pytest.fixture
def control(control_url: str) -> Iterator[Control]:
    opened = Control(control_url)
    opened.migrate()
    opened.catalogs.ensure_default()
    yield opened
    opened.close()


def _book(control: Control, *, needed: bool = True) -> TokenBook:
    return TokenBook(control=control, bootstrap="first-of-all", needed=needed, poll_seconds=0.5)


def _made(control: Control) -> NewToken:
    made = NewToken.make()
    control.tokens.create(
        token_id=made.token_id,
        name="shop",
        scope="WRITE",
        catalogs=["default"],
        digest=made.digest,
        created_by="bootstrap",
        ttl_seconds=0,
    )
    return made


def test_tokens_are_seen_once_they_are_read(control: Control):
    book = _book(control)
    book.refresh()
    made = _made(control)
    with pytest.raises(ServiceError, match="not valid"):
        book.admit([f"Bearer {made.bearer}"])
    book.refresh()
    caller = book.admit([f"Bearer {made.bearer}"])
    assert (caller.name, caller.scope, caller.catalogs) == ("shop", Scope.WRITE, frozenset({"default"}))
    control.tokens.revoke(made.token_id, revoked_by="bootstrap")
    book.refresh()
    with pytest.raises(ServiceError, match="was revoked"):
        book.admit([f"Bearer {made.bearer}"])


def test_what_may_have_been_revoked_unseen_is_trusted_no_more(control: Control, monkeypatch: pytest.MonkeyPatch):
    book = _book(control)
    made = _made(control)
    book.refresh()
    monkeypatch.setattr(credentials, "_TRUST_SECONDS", -1.0)
    with pytest.raises(ServiceError) as caught:
        book.admit([f"Bearer {made.bearer}"])
    assert caught.value.reason == "STORE_UNAVAILABLE"
    # Whoever does not know the secret learns nothing of it, and the configured token is no matter of the database.
    with pytest.raises(ServiceError, match="not valid"):
        book.admit([f"Bearer {made.bearer[:-1]}"])
    assert book.admit(["Bearer first-of-all"]).name == "bootstrap"


def test_where_no_token_is_needed_none_is_looked_at(control: Control):
    for given in ([], ["Bearer nonsense"], ["Basic x", "y"]):
        caller = _book(control, needed=False).admit(given)
        assert (caller.name, caller.scope, caller.catalogs) == ("anonymous", Scope.ADMIN, None)


def test_no_two_tokens_are_alike_and_their_digest_is_no_secret():
    made = [NewToken.make() for _ in range(100)]
    assert len({one.token_id for one in made}) == len({one.bearer for one in made}) == 100
    assert all(one.digest not in one.bearer and len(one.bearer.rpartition("_")[2]) == 64 for one in made)
