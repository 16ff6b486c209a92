"""docs/errors.md tells of every reason that the service can give, and of no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dmesr.cli import main
from dmesr.v1 import errors_pb2
from dmesr_server.errors import ServiceError

DOCS = Path(__file__).parents[2] / "docs"

ROWS = re.findall(
    r"^\| `([A-Z_]+)` \| (.+?) \| (.+?) \| (.+?) \|$",
    (DOCS / "errors.md").read_text(),
    re.MULTILINE,
)


def test_every_reason_has_one_row_with_a_remedy():
    reasons = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name} - {
        "UNSPECIFIED"
    }
    assert sorted(reason for reason, *_ in ROWS) == sorted(reasons)


def test_the_codes_are_those_that_the_server_answers_with():
    for reason, code, *_ in ROWS:
        assert code in ("row", ServiceError(reason, "").code.name), reason


@pytest.mark.parametrize("page", ["deployment.md", "errors.md", "operations.md"])
def test_the_commands_that_are_named_exist(page: str):
    named = set(re.findall(r"dmesr-cli ([a-z]+(?: [a-z]+)?)", (DOCS / page).read_text()))
    assert named
    for words in sorted(named):
        assert main([*words.split(), "--help"]) == 0, f"there is no dmesr-cli {words}"
