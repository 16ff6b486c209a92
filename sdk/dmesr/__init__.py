"""The SDK of the DMESR service: the semantics of a multimodal LLM in a small, fast sequential recommender.

    import dmesr

    with dmesr.connect("127.0.0.1:50051") as client:
        client.items.upsert(dmesr.Item(id, attributes=…, picture=Path(…)) for … in catalogue)
        client.enrichment.start().wait(progress=True)
        vectors = client.embeddings.read().matrix("text")
        client.recommend(history=["1", "2"], k=10)

The same calls as coroutines are in :mod:`dmesr.aio`, errors in :mod:`dmesr.errors`, files in :mod:`dmesr.readers`.
"""

from dmesr import aio
from dmesr.client import Client, connect
from dmesr.errors import ApiError, DeadlineExceeded, DmesrError, InvalidInput, JobFailed, ServerUnavailable
from dmesr.items import KEEP_PICTURE, DeleteSummary, Item, ItemsFound
from dmesr.rows import Problem, RejectedRow, UpsertSummary
from dmesr.transport import TLS, RetryPolicy, Timeout

__version__ = "0.1.0"

__all__ = [
    "KEEP_PICTURE",
    "TLS",
    "ApiError",
    "Client",
    "DeadlineExceeded",
    "DeleteSummary",
    "DmesrError",
    "InvalidInput",
    "Item",
    "ItemsFound",
    "JobFailed",
    "Problem",
    "RejectedRow",
    "RetryPolicy",
    "ServerUnavailable",
    "Timeout",
    "UpsertSummary",
    "aio",
    "connect",
]
