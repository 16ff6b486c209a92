"""The SDK for coroutines: the same calls as in :mod:`dmesr`, awaited.

async with dmesr.aio.connect("127.0.0.1:50051") as client:
item = await client.items.get("1")
async for item in client.items.list():
...
"""

from __future__ import annotations

from dmesr.client import AsyncClient
from dmesr.client import connect_async as connect
from dmesr.items import AsyncItems

__all__ = ["AsyncClient", "AsyncItems", "connect"]
