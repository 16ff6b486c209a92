"""Tokens and the audit log through the SDK, on a server of their own that asks for tokens."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import dmesr
import dmesr.aio
import pytest
from running_server import RunningServer


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("guarded"), enricher=False, server__token="first-of-all")
    yield server.start()
    server.stop()


@pytest.fixture
def root(guarded: RunningServer) -> Iterator[dmesr.Client]:
    with dmesr.connect(guarded.address, token="first-of-all") as client:
        yield client


def test_a_token_from_its_making_to_its_end(root: dmesr.Client, guarded: RunningServer):
    made = root.admin.create_token("shop", scope="read", catalogs=["default"], ttl=timedelta(days=1))
    token = made.token
    assert (token.name, token.scope, token.catalogs) == ("shop", dmesr.TokenScope.READ, ("default",))
    assert token.create_time is not None
    assert token.expire_time == token.create_time + timedelta(days=1)
    assert (token.created_by, token.revoke_time, token.revoked_by) == ("bootstrap", None, "")
    assert made.bearer_token not in repr(made)
    assert token in root.admin.list_tokens()
    with dmesr.connect(guarded.address, token=made.bearer_token) as shop:
        assert list(shop.items.list()) == []
        with pytest.raises(dmesr.OutOfScope, match="has the scope read") as caught:
            shop.items.upsert([dmesr.Item("1")])
        assert caught.value.metadata["needed_scope"] == "write"
        with pytest.raises(dmesr.PermissionDenied, match="is not for the catalog 'films'"):
            list(shop.catalog("films").items.list())
        revoked = root.admin.revoke_token(token.token_id)
        assert (revoked.revoked_by, revoked.revoke_time is not None) == ("bootstrap", True)
        with pytest.raises(dmesr.Unauthenticated, match="was revoked"):
            list(shop.items.list())
    assert token.token_id not in [one.token_id for one in root.admin.list_tokens()]
    assert revoked in root.admin.list_tokens(include_ended=True)
    with pytest.raises(dmesr.TokenNotFound):
        root.admin.revoke_token("absent")


def test_arguments_that_cannot_be_meant(root: dmesr.Client):
    for wrong, arguments in (
        ("scope is 'owner'", {"scope": "owner", "catalogs": None}),
        ("catalogs is 'films'", {"scope": "read", "catalogs": "films"}),
        ("catalogs is empty", {"scope": "read", "catalogs": []}),
        ("ttl is", {"scope": "read", "catalogs": None, "ttl": timedelta(0)}),
    ):
        with pytest.raises(dmesr.InvalidInput, match=wrong):
            root.admin.create_token("shop", **arguments)
    with pytest.raises(dmesr.InvalidInput, match="without a zone"):
        list(root.admin.list_audit(since=datetime(2026, 1, 1)))
    with pytest.raises(dmesr.CatalogNotFound):
        root.admin.create_token("shop", scope="read", catalogs=["absent"])


async def test_the_async_face(guarded: RunningServer):
    async with dmesr.aio.connect(guarded.address, token="first-of-all") as client:
        made = await client.admin.create_token("async-shop", scope=dmesr.TokenScope.ADMIN, catalogs=None)
        assert made.token.catalogs is None
        assert made.token in await client.admin.list_tokens()
        await client.admin.revoke_token(made.token.token_id)
        told = [one async for one in client.admin.list_audit(method="RevokeToken")]
        assert (told[0].who, told[0].outcome) == ("bootstrap", "OK")
        assert told[0].subject == f"token_id={made.token.token_id}"
        assert told[0].time is not None
        newer = [one async for one in client.admin.list_audit(since=told[0].time)]
        assert newer[0].number == told[0].number
