"""The smallest form of each part of the benchmark of training: it runs, and its rows have the promised form."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(ROOT))
    threads = torch.get_num_threads()
    from benchmarks.training.__main__ import main

    def run(*arguments: str) -> dict[str, dict]:
        file = tmp_path / "training.json"
        main(["--smallest", "--output", str(file), *arguments])
        return {row["name"]: row for row in json.loads(file.read_text())} if file.exists() else {}

    yield run
    torch.set_num_threads(threads)
    for name in [name for name in sys.modules if name.startswith("benchmarks")]:
        sys.modules.pop(name)


def _check(row: dict, *, peer: bool, better: str = "lower") -> None:
    assert row["value"] > 0
    assert (row["peer"] is not None) == peer
    assert row["better"] == better
    assert row["how"]
    assert "torch" in row["how"]


def test_steps_beside_peers(measure: Callable[..., dict[str, dict]]) -> None:
    found = measure("--part", "plain", "--part", "views")
    assert len([name for name in found if name.startswith("plain/")]) == 2
    assert len([name for name in found if name.startswith("views/")]) == 4
    for row in found.values():
        _check(row, peer=True)
        assert row["unit"] == "ms"
    assert found["plain/step L=6"]["target"] == 1.0


def test_the_share_of_matrix_products(measure: Callable[..., dict[str, dict]]) -> None:
    found = measure("--part", "products")
    _check(found.pop("products/machine"), peer=False, better="higher")
    shares = {name for name in found if name.startswith("products/share")}
    assert len(shares) == 2
    for name in shares:
        _check(found[name], peer=False, better="higher")
        assert found[name]["value"] < 1
    for name in found.keys() - shares:
        _check(found[name], peer=True, better="higher")


def test_evaluation(measure: Callable[..., dict[str, dict]]) -> None:
    found = measure("--part", "evaluation")
    assert set(found) == {"evaluation/none", "evaluation/dmesr"}
    for row in found.values():
        _check(row, peer=False)
        assert row["target"] == 1.0


def test_growth_with_the_catalogue(monkeypatch: pytest.MonkeyPatch, measure: Callable[..., dict[str, dict]]) -> None:
    from benchmarks.training import growth

    asked = []

    def in_this_process(method: str, items: int, size: object) -> dict[str, float]:
        asked.append((method, items))
        return growth._trained(method, items, size)

    monkeypatch.setattr(growth, "_in_a_process", in_this_process)
    found = measure("--part", "growth")
    assert asked == [(method, items) for method in ("none", "dmesr") for items in (100, 200)]
    assert len(found) == 8
    for name, row in found.items():
        _check(row, peer=False)
        assert row["unit"] == ("MB" if name.endswith("memory") else "ms")


def test_prefixes_are_left_out_without_recbole(
    measure: Callable[..., dict[str, dict]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure("--part", "prefixes", "--peers-python", str(tmp_path / "python")) == {}
    assert "requirements.txt" in capsys.readouterr().out


def test_time_to_the_best_epoch_is_read_from_runs(measure: Callable[..., dict[str, dict]], tmp_path: Path) -> None:
    lines = [
        {"backbone": "sasrec", "method": "none", "best_epoch": 5, "epochs": 10, "seconds": 40.0},
        {"backbone": "sasrec", "method": "none", "best_epoch": 10, "epochs": 10, "seconds": 30.0},
        {"backbone": "", "method": "popularity", "best_epoch": 0, "epochs": 0, "seconds": 1.0},
    ]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "runs.parquet")
    found = measure("--part", "best", "--runs", str(tmp_path))
    assert set(found) == {f"best/{tmp_path.name}/none on sasrec"}
    assert found[f"best/{tmp_path.name}/none on sasrec"]["value"] == pytest.approx(25.0)


def test_a_folder_without_runs_is_told(measure: Callable[..., dict[str, dict]], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no runs\.parquet"):
        measure("--part", "best", "--runs", str(tmp_path))


def test_the_textbook_sees_no_later_item(measure: Callable[..., dict[str, dict]]) -> None:
    from benchmarks.training.textbook import TextbookSasRec

    torch.manual_seed(0)
    model = TextbookSasRec(items=20, dim=8, length=5).eval()
    before = torch.tensor([[1, 2, 3, 4, 5]])
    after = torch.tensor([[1, 2, 3, 9, 7]])
    with torch.no_grad():
        first, second = model.states(before), model.states(after)
    assert torch.allclose(first[:, :3], second[:, :3], atol=1e-6)
    assert not torch.allclose(first[:, 3:], second[:, 3:], atol=1e-3)
