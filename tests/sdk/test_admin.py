"""Administration through the SDK, on a real server."""

from __future__ import annotations

import dmesr
import dmesr.aio
import pytest
from running_server import RunningServer


def test_catalogs(films: dmesr.Client):
    name = f"{films.catalog_name}-games"
    made = films.admin.create_catalog(name, domain="video game", language="de")
    assert (made.name, made.domain, made.language, made.items) == (name, "video game", "de", 0)
    assert made.create_time is not None
    assert made in films.admin.list_catalogs()
    with pytest.raises(dmesr.CatalogExists, match=name):
        films.admin.create_catalog(name)
    films.admin.drop_catalog(name)
    assert name not in [catalog.name for catalog in films.admin.list_catalogs()]
    with pytest.raises(dmesr.CatalogNotFound, match=name):
        films.admin.drop_catalog(name)
    with pytest.raises(dmesr.InvalidField) as caught:
        films.admin.create_catalog("Not A Name")
    assert [violation.field for violation in caught.value.violations] == ["name"]
    with pytest.raises(dmesr.InvalidInput, match="name is ''"):
        films.admin.create_catalog("")


def test_the_server_tells_what_it_is(films: dmesr.Client):
    info = films.admin.server_info()
    assert (info.version, info.schema_version) == (dmesr.__version__, 1)
    assert (info.limits.max_items_per_batch, info.limits.max_ids_per_call) == (40, 50)
    assert info.limits.max_message_bytes == 4 * 1024 * 1024
    assert (info.describer, info.describer_is_mllm, info.auto_enrich) == ("palette", False, False)
    assert "lancedb" in info.packages


def test_what_the_store_holds(films: dmesr.Client, sdk_server: RunningServer):
    films.items.upsert([dmesr.Item("1"), dmesr.Item("2")])
    stats = films.admin.store_stats()
    assert stats.uri == str(sdk_server.store)
    items = next(table for table in stats.tables if table.name == "items")
    assert items.rows == 2
    assert items.bytes > 0
    assert items.files > 0


async def test_the_async_face(sdk_server: RunningServer, films: dmesr.Client):
    async with dmesr.aio.connect(sdk_server.address, catalog=films.catalog_name) as client:
        name = f"{films.catalog_name}-2"
        assert (await client.admin.create_catalog(name)).name == name
        assert name in [catalog.name for catalog in await client.admin.list_catalogs()]
        await client.admin.drop_catalog(name)
        assert (await client.admin.server_info()).version == dmesr.__version__
        assert (await client.admin.store_stats()).uri == str(sdk_server.store)
