"""The SDK for coroutines: the same calls as in :mod:`dmesr`, awaited.

async with dmesr.aio.connect("127.0.0.1:50051") as client:
item = await client.items.get("1")
async for item in client.items.list():
...
"""

from dmesr.admin import AsyncAdmin
from dmesr.client import AsyncClient
from dmesr.client import connect_async as connect
from dmesr.embeddings import AsyncCatalogEmbeddings
from dmesr.enrichment import AsyncEnrichment
from dmesr.items import AsyncItems
from dmesr.jobs import AsyncJob
from dmesr.models import AsyncModels
from dmesr.pins import AsyncPin

__all__ = [
    "AsyncAdmin",
    "AsyncCatalogEmbeddings",
    "AsyncClient",
    "AsyncEnrichment",
    "AsyncItems",
    "AsyncJob",
    "AsyncModels",
    "AsyncPin",
    "connect",
]
