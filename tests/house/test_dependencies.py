"""What is installed is pinned, its licences are listed, and none of them binds whoever ships the service."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
TABLE_ROW = re.compile(r"^\| *([A-Za-z0-9._-]+) *\| *(\S+) *\| *(.+?) *\|$")


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line.split("#")[0].strip()) for line in lines if line.split("#")[0].strip()]
    assert all(len(one.specifier) == 1 and str(one.specifier).startswith("==") for one in found), "not an exact pin"
    return {canonicalize_name(one.name): Version(str(one.specifier)[2:]) for one in found}


def licences() -> dict[str, tuple[Version, str]]:
    rows = [TABLE_ROW.match(line) for line in (ROOT / "docs" / "licences.md").read_text().splitlines()]
    return {
        canonicalize_name(row[1]): (Version(Version(row[2]).public), row[3])  # +cpu is the same version
        for row in rows
        if row and row[1] != "Name" and not row[1].startswith("-")
    }


def needed() -> set[str]:
    """Every distribution that `pip install dmesr[dev]` brings on this platform, by the packages' own words."""
    found: set[str] = set()
    waiting = [Requirement("dmesr[dev]")]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        asked = {"", *one.extras}
        if all(f"{name}[{extra}]" in found for extra in asked):
            continue
        found |= {f"{name}[{extra}]" for extra in asked}
        for line in metadata.requires(one.name) or ():
            wanted = Requirement(line)
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in asked):
                waiting.append(wanted)
    return {name.partition("[")[0] for name in found} - {"dmesr"}


def test_everything_that_is_needed_is_pinned_and_installed_as_pinned():
    pinned = pins()
    wanted = needed()
    assert sorted(wanted - set(pinned)) == [], "add them to constraints.txt"
    installed = {name: Version(metadata.version(name)) for name in wanted}
    differing = {name: str(has) for name, has in installed.items() if Version(has.public) != pinned[name]}
    assert differing == {}, "installed in another version than constraints.txt pins: remove .venv and make it anew"


def test_nothing_is_pinned_that_nothing_needs():
    assert sorted(set(pins()) - needed()) == []


def test_the_licence_of_everything_is_listed():
    listed = {name: version for name, (version, _) in licences().items()}
    assert listed == pins(), "run `make licences`"


@pytest.mark.parametrize("name", sorted(licences()))
def test_no_licence_binds_whoever_ships_the_service(name: str):
    _, licence = licences()[name]
    assert licence.upper() not in ("UNKNOWN", "NONE", ""), f"{name} does not say; look, and write it down"
    copyleft = re.search(r"\bA?GPL|GNU (Affero )?General Public", licence)
    assert copyleft is None, f"{name} is under {licence}"
