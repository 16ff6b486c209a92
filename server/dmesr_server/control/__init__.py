"""The control database: what needs transactions and heartbeats. Nothing outside this package imports SQLAlchemy.

Everything here blocks and is safe for any thread; asyncio callers use threads. Several processes may share a database.
"""

from .alias_rows import AliasRow
from .audit import AuditRow
from .catalogs import CatalogRow
from .control import Control
from .database import read_only_refusal
from .jobs import ClaimedJob, JobRow, JobState
from .leases import Lease
from .leasing import leased
from .lineage import MoveRow
from .models import ModelRow, ModelState
from .pins import PinRow
from .recipes import DescriptionRecipeRow, RecipeRow
from .records import EmbeddingRecipeRecord, JobRecord, ModelRecord, Records
from .splits import SplitRow
from .tokens import TokenRow

__all__ = [
    "AliasRow",
    "AuditRow",
    "CatalogRow",
    "ClaimedJob",
    "Control",
    "DescriptionRecipeRow",
    "EmbeddingRecipeRecord",
    "JobRecord",
    "JobRow",
    "JobState",
    "Lease",
    "ModelRecord",
    "ModelRow",
    "ModelState",
    "MoveRow",
    "PinRow",
    "RecipeRow",
    "Records",
    "SplitRow",
    "TokenRow",
    "leased",
    "read_only_refusal",
]
