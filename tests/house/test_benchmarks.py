"""What the benchmarks write: each figure says how it was got, and a part replaces its own rows only."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import rows

    yield rows
    sys.modules.pop("benchmarks.rows", None)


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_the_committed_results_are_whole(file: Path) -> None:
    rows = json.loads(file.read_text())
    assert len({row["name"] for row in rows}) == len(rows) > 0
    for row in rows:
        assert {"name", "value", "peer", "ratio", "target", "better", "unit", "how"} <= set(row)
        assert row["better"] in ("higher", "lower")
        assert row["how"]
        assert (row["ratio"] is None) == (not row["peer"])
        if row["peer"]:
            assert row["ratio"] == pytest.approx(row["value"] / row["peer"], rel=1e-3)


def test_a_part_replaces_its_own_rows_only(figures, tmp_path: Path) -> None:
    def row(name: str, value: float, **more: object):
        return figures.Row(name=name, value=value, unit="items/s", how="by hand", **more)

    file = tmp_path / "results" / "figures.json"
    figures.merge(file, [row("speed/a", 3.0, peer=4.0, target=0.8), row("speed/b", 1.0), row("memory/growth", 5.0)])
    figures.merge(file, [row("speed/a", 4.0, peer=4.0, target=0.8)])
    found = {each["name"]: each for each in json.loads(file.read_text())}
    assert set(found) == {"speed/a", "memory/growth"}
    assert found["speed/a"]["ratio"] == 1.0
    assert found["memory/growth"]["peer"] is found["memory/growth"]["ratio"] is None


def test_a_target_is_of_the_ratio_where_there_is_a_peer(figures) -> None:
    def met(value: float, **more: object):
        return figures.Row(name="a/b", value=value, unit="MB", how="by hand", **more).met

    assert met(3.0, peer=4.0, target=0.8) is False
    assert met(3.2, peer=4.0, target=0.8) is True
    assert met(49.0, target=50.0, better="lower") is True
    assert met(51.0, target=50.0, better="lower") is False
    assert met(51.0) is None
