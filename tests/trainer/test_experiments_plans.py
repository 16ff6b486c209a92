"""What an experiment compares and how its rows are computed, without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from dmesr_trainer.config import BACKBONES, METHODS, TrainConfig
from dmesr_trainer.experiments import ablation, paper, spaces, table2
from dmesr_trainer.experiments.arms import FLOORS, Arm, Budget, Setup, reads_vectors
from dmesr_trainer.experiments.cells import CellSpec, CellStore
from dmesr_trainer.experiments.data import About, Data
from dmesr_trainer.experiments.measured import Measured, best_baseline, named, row_json, rows
from dmesr_trainer.experiments.opening import settings
from dmesr_trainer.experiments.storage import read_json, write_json
from dmesr_trainer.experiments.sweep import GRIDS, grid_arms
from dmesr_trainer.sequences import Sequences

ROOT = Path(__file__).parents[2]


@pytest.fixture
def setup(tmp_path: Path, sequences: Sequences) -> Setup:
    about = About("movielens", (), False, sequences.n_users, sequences.n_items, len(sequences.events_E), 40)
    return Setup(
        data=Data(about=about, sequences=sequences),
        store=CellStore(tmp_path / "cells"),
        vectors=None,
        budget=Budget(seeds=(0, 1)),
        changes={"dim": 16},
        method_changes={"dmesr": {"alignment__weight": 0.7}},
        jobs=1,
        output=tmp_path / "out",
        command="dmesr-cli experiment",
    )


def test_the_papers_averages_come_out_of_its_table_2():
    """§4.2 prints the average gains over None: the numbers were copied right."""
    gains: dict[str, list[float]] = {"hr": [], "ndcg": []}
    for backbones in paper.TABLE_2.values():
        for rows_ in backbones.values():
            for metric, found in gains.items():
                found.append(getattr(rows_["dmesr"], metric) / getattr(rows_["none"], metric) - 1)
    assert np.mean(gains["hr"]) == pytest.approx(0.3121, abs=0.002)
    assert np.mean(gains["ndcg"]) == pytest.approx(0.3568, abs=0.002)
    for backbone, parts in paper.TABLE_3.items():
        assert parts[""] == paper.TABLE_2["movielens"][backbone]["dmesr"]


def test_paper_values_by_name():
    value = paper.table_2("amazon_games", backbone="bert4rec", method="x-reflect", metric="ndcg@10")
    assert value == paper.PaperValue(0.3833, "Table 2")
    assert paper.table_2("movielens", backbone="sasrec", method="dmesr-paper", metric="hr@10").value == 0.8557  # type: ignore[union-attr]
    assert paper.table_2("movielens", backbone="sasrec", method="none-flag", metric="hr@10") is None
    assert paper.table_2("movielens", backbone="sasrec", method="none", metric="full_hr@10") is None
    assert paper.table_2("sample", backbone="sasrec", method="none", metric="hr@10") is None
    assert paper.table_3("yelp", backbone="sasrec", without="routes", metric="hr@10") is None
    assert paper.table_3("movielens", backbone="gru4rec", without="routes", metric="hr@10").value == 0.6328  # type: ignore[union-attr]


def test_table_2_has_a_row_for_every_method_and_backbone(setup: Setup):
    found = table2.arms(setup, methods=METHODS, backbones=BACKBONES)
    floors = [arm for arm in found if arm.role == "floor"]
    assert {arm.method for arm in floors} == set(FLOORS)
    assert all(arm.backbone == "" and arm.seeds == (0,) for arm in floors)
    assert len(found) - len(floors) == len(BACKBONES) * (len(METHODS) - len(FLOORS))
    for arm in found:
        assert arm.config.dim == 16
        assert (arm.config.alignment.weight == 0.7) == (arm.method == "dmesr")
    for backbone in BACKBONES:
        steps = {
            (arm.config.optimiser.epochs, arm.config.optimiser.patience) for arm in found if arm.backbone == backbone
        }
        assert len(steps) == 1  # the same budget for all
    assert not any(map(reads_vectors, ("none", *FLOORS)))
    assert reads_vectors("dmesr")
    with pytest.raises(ValueError, match="unknown method 'dmsr'"):
        table2.arms(setup, methods=["dmsr"], backbones=BACKBONES)


def test_the_steps_lead_from_the_papers_recipe_to_ours(setup: Setup):
    printed, whole = setup.config("dmesr-paper", "sasrec"), setup.config("dmesr", "sasrec")
    additions = ablation.additions(printed, whole)
    fields = [name for addition in additions for name in addition.fields]
    assert len(fields) == len(set(fields))
    after = ablation.flat(whole)
    last = printed.changed(**{name: after[name] for name in fields}, method="dmesr")
    assert last == whole
    found = ablation.arms(setup, backbones=["sasrec"])
    labels = [arm.method for arm in found]
    assert labels[:5] == [
        "dmesr",
        "w/o CL (alignment)",
        "w/o CA (cross-attention)",
        "w/o Ori-view (original)",
        "w/o TWP (routes)",
    ]
    assert [value.value for value in found[1].paper.values()] == [0.8180, 0.6021]
    for group in {arm.group for arm in found}:
        configs = [arm.config for arm in found if arm.group == group]
        assert all(one not in configs[:place] for place, one in enumerate(configs))  # every row is another model
    (_, leaky) = ablation.arms(setup, backbones=["sasrec"], groups=["leak"])
    assert (leaky.method, leaky.config) == (ablation.LEAKY, whole.changed(fusion__leaky=True))
    with pytest.raises(ValueError, match="unknown group of rows 'all'"):
        ablation.arms(setup, backbones=["sasrec"], groups=["all"])


def test_alpha_is_swept_for_dmesr_alone(setup: Setup):
    found = grid_arms(setup, GRIDS["alpha"], methods=["none", "dmesr"], backbones=["sasrec"])
    assert [arm.config.alignment.weight for arm in found] == [0.01, 0.05, 0.1, 0.5, 1.0]
    found = grid_arms(setup, GRIDS["dim"], methods=["none", "dmesr"], backbones=["sasrec"])
    assert [(arm.method, arm.config.dim) for arm in found][:2] == [("none d=32", 32), ("none d=64", 64)]


def test_every_method_is_searched_over_the_same_shared_settings(setup: Setup):
    preset = ablation.flat(setup.config("dmesr", "sasrec"))
    for method in METHODS:
        if method in FLOORS:
            continue
        space = spaces.space_of(setup, method, "sasrec", file={})
        # The width is set for all, so it is not searched.
        assert set(spaces.SHARED) - {"dim"} <= set(space)
        assert "dim" not in space
    assert "alignment__weight" not in spaces.space_of(setup, "dmesr", "sasrec", file={})
    ours = spaces.space_of(setup, "dmesr", "sasrec", file={"dmesr": {"ids__dropout": spaces.Choice((0.9,))}})
    assert ours["ids__dropout"] == spaces.Choice((0.9, preset["ids__dropout"]))
    assert list(spaces.space_of(setup, "ease", "", file={})) == ["ease__l2", "ease__history", "ease__train_last"]
    with pytest.raises(ValueError, match=r"names 'optimiser.speed'"):
        spaces.space_of(setup, "dmesr", "sasrec", file={"shared": {"optimiser__speed": spaces.Choice((1,))}})


def test_a_users_own_search_space(tmp_path: Path):
    path = tmp_path / "space.json"
    path.write_text('{"shared": {"dim": [8, 16]}, "dmesr": {"alignment.weight": {"low": 0.01, "high": 1}}}')
    assert spaces.read(path) == {
        "shared": {"dim": spaces.Choice((8, 16))},
        "dmesr": {"alignment__weight": spaces.Range(0.01, 1.0)},
    }
    assert spaces.read(None) == {}
    path.write_text('{"dmsr": {"dim": [3]}}')
    with pytest.raises(ValueError, match=r"'dmsr' is neither 'shared' nor a method"):
        spaces.read(path)
    path.write_text('{"dmesr": {"dim": 3}}')
    with pytest.raises(ValueError, match=r"space.json is no search space"):
        spaces.read(path)


def test_settings_of_all_and_of_one():
    every, by_method = settings(["dim=8", "dmesr:alignment.weight=0.1", 'sources.coarse=["text"]', "loss.name=bce"])
    assert every == {"dim": 8, "sources__coarse": ("text",), "loss__name": "bce"}
    assert by_method == {"dmesr": {"alignment__weight": 0.1}}
    for wrong, message in (
        ("dim", "METHOD:PART.FIELD=VALUE"),
        (":dim=3", "METHOD:PART.FIELD=VALUE"),
        ("dmesr:optimiser.speed=3", "unknown setting 'optimiser.speed'"),
    ):
        with pytest.raises(ValueError, match=message):
            settings([wrong])


def test_a_cell_is_all_that_decides_it_and_outlives_new_settings(tmp_path: Path):
    config = TrainConfig.preset("none")
    spec = CellSpec("data", "", config)
    store = CellStore(tmp_path)
    cell = store.cell(spec)
    assert store.cell(CellSpec("data", "", TrainConfig.preset("none"))).folder == cell.folder
    others = [
        CellSpec("other", "", config),
        CellSpec("data", "recipe:digest", config),
        CellSpec("data", "", config.changed(seed=1)),
        CellSpec("data", "", config.changed(loss__candidates=7)),
        CellSpec("data", "", config, minutes=3.0),
    ]
    assert len({store.cell(one).folder for one in [spec, *others]}) == 6
    # As if "fusion.heads" had come after the cell was run.
    written = read_json(cell.folder / "cell.json")
    del written["config"]["fusion"]["heads"]
    write_json(cell.folder / "cell.json", written)
    assert CellStore(tmp_path).cell(spec).folder == cell.folder
    # As if "fusion.width" had gone since: nobody can ask for that cell.
    written["config"]["fusion"]["width"] = 3
    write_json(cell.folder / "cell.json", written)
    assert not CellStore(tmp_path).cell(CellSpec("data", "", config.changed(seed=9))).finished


def test_a_cell_keeps_its_published_name_when_settings_come_later():
    # Of None on MovieLens in docs/experiments/table2-movielens, run before fusion.gate was there.
    data = "4efce45274779db9323785455f39b89c8b73f382360b6e7d29fe721d8b4bd1a0"
    config = TrainConfig.preset("none", device="auto")
    published = pq.read_table(ROOT / "docs/experiments/table2-movielens/runs.parquet").to_pylist()
    (line,) = (one for one in published if (one["method"], one["backbone"], one["seed"]) == ("none", "sasrec", 0))
    assert CellSpec(data, "", config).name == line["cell"]
    assert CellSpec(data, "", config.changed(fusion__gate=True)).name != line["cell"]


def test_what_is_no_experiments_folder_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no experiment's folder: it has no results\.json"):
        CellStore(tmp_path / "cells", runs_from=[tmp_path])


def _measured(method: str, backbone: str, role: Any, ranks: list[list[int]]) -> Measured:
    arm = Arm(method, backbone, TrainConfig(), None, role, tuple(range(len(ranks))))
    users = np.array([f"user-{place}" for place in range(len(ranks[0]))], object)
    both = {kind: np.array(ranks) for kind in ("sampled", "full")}
    return Measured(arm, arm.seeds, (), users, users, both, 10)


def test_rows_by_hand():
    found = rows(
        [
            _measured("popularity", "", "floor", [[11, 11, 11, 1]]),
            _measured("none", "sasrec", "baseline", [[1, 11, 11, 1], [1, 11, 1, 11]]),
            _measured("dmesr", "sasrec", "ours", [[1, 1, 11, 1], [1, 1, 1, 1]]),
        ],
        references={"best": best_baseline, "none": named("none")},
    )
    hits = {row.method: row for row in found if row.metric == "hr@10"}
    # None: user values 1, 0, 1/2, 1/2; DMESR: 1, 1, 1/2, 1.
    assert hits["none"].mean == 0.5
    assert hits["none"].std == 0.0
    assert hits["dmesr"].mean == 0.875
    assert hits["dmesr"].std == pytest.approx(np.std([0.75, 1.0], ddof=1))
    assert hits["popularity"].std is None
    test = hits["dmesr"].tests["best"]
    assert test.against == "none"
    assert test.comparison.difference.mean == 0.375
    # Differences 0, 1, 0, 1/2: t = 0.375 / (0.478714 / 2) with 3 degrees of freedom.
    assert test.comparison.p_value == pytest.approx(0.215169, abs=1e-5)
    assert "best" not in hits["none"].tests  # it is the best one
    assert "none" not in hits["popularity"].tests
    told = row_json(hits["dmesr"])
    assert told["p_value"] == test.comparison.p_value
    assert told["against"] == "none"
    assert told["comparisons"]["none"]["relative"] == 0.75
    assert told["seeds"] == [0, 1]
    assert told["users"] == 4
