"""RecBole's SASRec on given histories: seconds of CPU for some of its batches. Runs in an environment of its own.

    python recbole_peer.py SETTINGS_JSON

Prints one line of JSON. It knows nothing of the project, which is not installed where it runs.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

# RecBole 1.2.1 and what it imports still use names that NumPy 2 has dropped.
for name, kind in {"bool8": np.bool_, "float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}.items():
    setattr(np, name, kind)

import torch  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.model.sequential_recommender import SASRec  # noqa: E402


def main(settings: dict) -> dict:
    """CPU seconds of a batch, the median; rows of a batch; rows of an epoch.

    Args:
        settings: "folder" that holds histories/histories.inter, "length" (L), "batches" to time, "rows" of a batch.
    """
    torch.set_num_threads(1)
    size = {"n_layers": 2, "n_heads": 2, "hidden_size": 128, "inner_size": 128}
    config = Config(
        model="SASRec",
        dataset="histories",
        config_dict={
            **size,
            "data_path": settings["folder"],
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": settings["length"],
            "hidden_dropout_prob": 0.2,
            "attn_dropout_prob": 0.2,
            "hidden_act": "relu",
            "loss_type": "BPR",
            "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
            "train_batch_size": settings["rows"],
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
            "device": "cpu",
            "use_gpu": False,
            "show_progress": False,
        },
    )
    train, _, _ = data_preparation(config, create_dataset(config))
    model = SASRec(config, train.dataset).train()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    seconds, started = [], time.process_time()
    for number, batch in enumerate(train):
        adam.zero_grad()
        model.calculate_loss(batch).backward()
        adam.step()
        seconds.append(time.process_time() - started)
        started = time.process_time()
        if number == settings["batches"]:
            break
    counted = sorted(seconds[1:] or seconds)  # the first warms up
    return {"seconds": counted[len(counted) // 2], "rows": settings["rows"], "epoch_rows": len(train.dataset)}


if __name__ == "__main__":
    sys.argv, given = sys.argv[:1], json.loads(sys.argv[1])  # RecBole reads the command line too
    print(json.dumps(main(given)))
