"""Checks of what requests bring. Each raises a `ServiceError` that names the field, expected, actual and the remedy."""

from __future__ import annotations

import base64
import binascii
import json
import re
import unicodedata
import uuid
from collections.abc import Collection, Iterable, Sequence

from dmesr_server.config import LimitsConfig
from dmesr_server.errors import ServiceError, Violation, invalid_field

DEFAULT_CATALOG = "default"
DEFAULT_RECIPE = "default"
DEFAULT_ALIAS = "production"
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1_000
MAX_DESCRIBED_ITEMS = 1_000  # of one GetDescriptions

#: Sources that enrichment makes; a client may use the names only in a recipe that has no descriptions.
RESERVED_SOURCES = frozenset({"original", "text", "image", "hybrid", "reflect"})

_NAME = re.compile(r"[a-z0-9_-]{1,63}")
_SOURCE = re.compile(r"[a-z][a-z0-9_]{0,62}")
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,7}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def catalog_name(name: str) -> str:
    """The catalog that a request names; the default one when it names none."""
    return name or DEFAULT_CATALOG


def recipe_ref(name: str) -> str:
    """The recipe that a request names, by name or id; the default one when it names none."""
    return name or DEFAULT_RECIPE


def alias_name(name: str) -> str:
    """The alias that a request names; the default one when it names none."""
    return name or DEFAULT_ALIAS


def new_name(field: str, name: str) -> str:
    """A name for something new. An old one is looked up as it stands: a strange name is just not found."""
    if not _NAME.fullmatch(name):
        raise invalid_field(field, f"must be 1 to 63 lower-case letters, digits, '-' or '_', got {name!r:.80}")
    return name


def source_name(name: str) -> str:
    """The name of a source of vectors."""
    if not _SOURCE.fullmatch(name) or name in ("item_id", "found") or name.endswith(("_present", "_hash")):
        raise invalid_field(
            "source",
            "must be 1 to 63 lower-case letters, digits or '_', beginning with a letter, not 'item_id' or 'found' and "
            f"not ending in '_present' or '_hash', got {name!r:.80}",
        )
    return name


def sha256(field: str, value: str) -> str:
    """A lower-case hex sha256."""
    if not _SHA256.fullmatch(value):
        raise invalid_field(field, f"must be 64 lower-case hex digits of a sha256, got {value!r:.80}")
    return value


def request_id(value: str) -> str | None:
    """A UUID of the caller's, in its canonical form; None when not given."""
    if not value:
        return None
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise invalid_field("request_id", f"must be a UUID, got {value!r:.80}") from None


def item_id_problem(item_id: str, limits: LimitsConfig) -> ServiceError | None:
    """Why this cannot be the id of an item; None when it can."""
    if not item_id:
        return ServiceError("INVALID_ITEM_ID", "item_id is empty; give every item an id", item_id=item_id)
    size = len(item_id.encode())
    if size > limits.max_item_id_bytes:
        return ServiceError(
            "INVALID_ITEM_ID",
            f"item_id {item_id[:40]!r}… has {size} bytes of UTF-8, at most {limits.max_item_id_bytes} are allowed; "
            "use a shorter id",
            item_id=item_id[:256],
            expected=limits.max_item_id_bytes,
            actual=size,
        )
    # Cc holds the control characters, Zl and Zp the separators that break lines just so.
    bad = next((char for char in item_id if unicodedata.category(char) in ("Cc", "Zl", "Zp")), None)
    if bad is not None:
        return ServiceError(
            "INVALID_ITEM_ID",
            f"item_id {item_id!r} holds the control character U+{ord(bad):04X}; remove it",
            item_id=item_id,
            character=f"U+{ord(bad):04X}",
        )
    return None


def at_most(field: str, count: int, limit: int, limit_name: str) -> None:
    """Refuses a list that is longer than the limit of that name."""
    if count > limit:
        raise ServiceError(
            "REQUEST_TOO_LARGE",
            f"{field} has {count} entries, at most {limit} ({limit_name}) are allowed; split the call",
            field=field,
            limit=limit_name,
            expected=limit,
            actual=count,
        )


def ids(field: str, item_ids: Sequence[str], limits: LimitsConfig) -> list[str]:
    """The ids of a call, at most `max_ids_per_call`."""
    at_most(field, len(item_ids), limits.max_ids_per_call, "max_ids_per_call")
    empty = next((place for place, item_id in enumerate(item_ids) if not item_id), None)
    if empty is not None:
        raise invalid_field(f"{field}[{empty}]", "is empty")
    return list(item_ids)


def distinct(item_ids: Iterable[str]) -> list[str]:
    """Each id once, in the order of its first appearance."""
    return list(dict.fromkeys(item_ids))


def page_size(value: int) -> int:
    """The page length: coerced, never refused for being large."""
    if value < 0:
        raise invalid_field("page_size", f"must not be negative, got {value}")
    return min(value, MAX_PAGE_SIZE) or DEFAULT_PAGE_SIZE


def k(value: int, limits: LimitsConfig) -> int:
    """How many results are wanted: 10 when 0."""
    if value < 0 or value > limits.max_k:
        raise invalid_field("k", f"must lie between 1 and {limits.max_k} (max_k), or be 0 for 10, got {value}")
    return value or min(10, limits.max_k)


def encode_page_token(call: str, scope: Collection[str], after: str) -> str:
    """An opaque token: where the next page of that call begins.

    Args:
        call: The call's name.
        scope: What else the token is good for only, for instance the catalog.
        after: The last key of the page.
    """
    content = json.dumps([call, *scope, after], separators=(",", ":")).encode()
    checksum = binascii.crc32(content).to_bytes(4, "big")
    return base64.urlsafe_b64encode(checksum + content).rstrip(b"=").decode()


def decode_page_token(call: str, scope: Collection[str], token: str) -> str | None:
    """Where the page begins; None for the first page.

    Raises:
        ServiceError: INVALID_PAGE_TOKEN when this call, for this scope, never returned that token.
    """
    if not token:
        return None
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        if binascii.crc32(raw[4:]).to_bytes(4, "big") != raw[:4]:
            raise ValueError
        *actual, after = json.loads(raw[4:])
        if actual != [call, *scope] or not isinstance(after, str):
            raise ValueError
    except ValueError:
        raise ServiceError(
            "INVALID_PAGE_TOKEN",
            f"page_token is not one that {call} returned for these settings; begin without a token",
            call=call,
        ) from None
    return after


def required(**fields: str) -> None:
    """Refuses empty fields, naming all of them."""
    empty = [name for name, value in fields.items() if not value]
    if empty:
        raise ServiceError(
            "INVALID_FIELD",
            f"{', '.join(empty)} must be given",
            violations=[Violation(name, "must be given") for name in empty],
        )


def short_text(field: str, value: str) -> str:
    """A few words for people and prompts: one line of at most 100 characters."""
    if len(value) > 100 or not value.isprintable():
        raise invalid_field(field, f"must be at most 100 printable characters on one line, got {value!r:.80}")
    return value.strip()


def language(value: str) -> str:
    """A BCP 47 tag, or nothing."""
    if value and not _LANGUAGE.fullmatch(value):
        raise invalid_field("language", f"must be a BCP 47 tag such as 'en' or 'pt-BR', got {value!r:.80}")
    return value
