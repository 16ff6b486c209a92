"""The main job on real MovieLens with real posters, where the data is at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(os.environ.get("DMESR_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.mark.movielens
@pytest.mark.skipif(
    not (DATA / "ml-latest-small").is_dir(),
    reason="set DMESR_TEST_DATA to a folder that holds ml-latest-small and movie-posters",
)
def test_the_demo_on_movielens(tmp_path: Path):
    folder = ["--folder", str(tmp_path / "demo"), "--json"]
    ran = subprocess.run(
        [sys.executable, "-m", "dmesr.cli", "demo", "--dataset", "movielens", "--data", str(DATA), *folder],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    report = json.loads(ran.stdout)
    assert report["catalogue"]["items"] == 9742
    assert report["catalogue"]["with_picture"] == 1340
    assert report["dataset"]["users"] == 610
    ndcg = {method: figures["sampled"]["ndcg@10"] for method, figures in report["metrics"].items()}
    assert ndcg["dmesr"] > ndcg["none"] > ndcg["popularity"]
    assert len(report["recommendations"]) == 2
    assert all(len(user["items"]) == 10 for user in report["recommendations"])
    assert report["new_item"]["rank"] >= 1
