"""What the paper prints, so that results stand beside it: Tables 2 and 3, and what the text says of Figures 2 to 4.

The figures are drawings without printed values, so there is nothing of them to compare a number with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PaperValue:
    """One number of the paper.

    Attributes:
        value: Of HR@10 or NDCG@10, over 1 positive and 100 sampled negatives (§4.1.4).
        source: "Table 2" or "Table 3".
    """

    value: float
    source: str


@dataclass(frozen=True)
class PaperRow:
    """A row's two numbers on one dataset."""

    hr: float  # H@10
    ndcg: float  # N@10


#: Table 2: dataset → backbone → method.
TABLE_2: Mapping[str, Mapping[str, Mapping[str, PaperRow]]] = {
    "movielens": {
        "sasrec": {
            "none": PaperRow(0.4951, 0.3307),
            "cpmm": PaperRow(0.8426, 0.6259),
            "qarm": PaperRow(0.8082, 0.5883),
            "xreflect": PaperRow(0.7426, 0.5034),
            "dmesr": PaperRow(0.8557, 0.6361),
        },
        "bert4rec": {
            "none": PaperRow(0.6738, 0.4270),
            "cpmm": PaperRow(0.7787, 0.5410),
            "qarm": PaperRow(0.7115, 0.4529),
            "xreflect": PaperRow(0.6803, 0.4318),
            "dmesr": PaperRow(0.7967, 0.5517),
        },
        "gru4rec": {
            "none": PaperRow(0.4951, 0.3462),
            "cpmm": PaperRow(0.5803, 0.3860),
            "qarm": PaperRow(0.5164, 0.3593),
            "xreflect": PaperRow(0.5721, 0.3550),
            "dmesr": PaperRow(0.6180, 0.4409),
        },
    },
    "yelp": {
        "sasrec": {
            "none": PaperRow(0.6346, 0.4373),
            "cpmm": PaperRow(0.8139, 0.5229),
            "qarm": PaperRow(0.7227, 0.4888),
            "xreflect": PaperRow(0.8039, 0.5016),
            "dmesr": PaperRow(0.8246, 0.5471),
        },
        "bert4rec": {
            "none": PaperRow(0.7084, 0.4596),
            "cpmm": PaperRow(0.7890, 0.4909),
            "qarm": PaperRow(0.7476, 0.4895),
            "xreflect": PaperRow(0.7821, 0.4708),
            "dmesr": PaperRow(0.8102, 0.5241),
        },
        "gru4rec": {
            "none": PaperRow(0.5259, 0.3399),
            "cpmm": PaperRow(0.6750, 0.4084),
            "qarm": PaperRow(0.5567, 0.3650),
            "xreflect": PaperRow(0.7784, 0.4710),
            "dmesr": PaperRow(0.8042, 0.5076),
        },
    },
    "amazon-games": {
        "sasrec": {
            "none": PaperRow(0.5574, 0.3710),
            "cpmm": PaperRow(0.6387, 0.4186),
            "qarm": PaperRow(0.6716, 0.4544),
            "xreflect": PaperRow(0.6334, 0.4023),
            "dmesr": PaperRow(0.6717, 0.4500),
        },
        "bert4rec": {
            "none": PaperRow(0.5545, 0.3527),
            "cpmm": PaperRow(0.6045, 0.3862),
            "qarm": PaperRow(0.6556, 0.4457),
            "xreflect": PaperRow(0.6147, 0.3833),
            "dmesr": PaperRow(0.6725, 0.4507),
        },
        "gru4rec": {
            "none": PaperRow(0.5081, 0.3092),
            "cpmm": PaperRow(0.4622, 0.2753),
            "qarm": PaperRow(0.6048, 0.3850),
            "xreflect": PaperRow(0.6170, 0.3823),
            "dmesr": PaperRow(0.6402, 0.4164),
        },
    },
}

#: Table 3, on MovieLens: backbone → what is left out ("" for the whole method).
TABLE_3: Mapping[str, Mapping[str, PaperRow]] = {
    "sasrec": {
        "": PaperRow(0.8557, 0.6361),
        "alignment": PaperRow(0.8180, 0.6021),
        "cross-attention": PaperRow(0.8457, 0.6391),
        "original": PaperRow(0.8230, 0.6109),
        "routes": PaperRow(0.8393, 0.6253),
    },
    "bert4rec": {
        "": PaperRow(0.7967, 0.5517),
        "alignment": PaperRow(0.7066, 0.4689),
        "cross-attention": PaperRow(0.7754, 0.5473),
        "original": PaperRow(0.7607, 0.5175),
        "routes": PaperRow(0.7164, 0.4911),
    },
    "gru4rec": {
        "": PaperRow(0.6180, 0.4409),
        "alignment": PaperRow(0.5705, 0.4031),
        "cross-attention": PaperRow(0.6016, 0.4031),
        "original": PaperRow(0.5754, 0.3960),
        "routes": PaperRow(0.6328, 0.4243),
    },
}

#: What Table 3 calls the ablations.
TABLE_3_NAMES: Mapping[str, str] = {
    "alignment": "w/o CL",
    "cross-attention": "w/o CA",
    "original": "w/o Ori-view",
    "routes": "w/o TWP",
}

FIGURE_2 = (
    "Figure 2 (long-tail items, MovieLens and Yelp) is a drawing without printed values. Its text (§4.4): DMESR is "
    "generally best on both metrics, X-REFLECT second, QARM last of the three baselines."
)
FIGURE_3 = (
    "Figure 3 (SASRec on MovieLens) is a drawing without printed values. Its text (§4.5): accuracy falls as α rises "
    "from 0.01 to 1 and stays above the model without contrastive learning (0.8180 / 0.6021, Table 3); d = 128 is best."
)
FIGURE_4 = (
    "Figure 4 (MovieLens) is a drawing without printed values. Its text (§4.6): Qwen2.5-VL-3B and -7B are about equal, "
    "7B slightly better on GRU4Rec; VisualGLM-6B is similar overall and slightly worse on GRU4Rec."
)

# `dmesr-paper` is the paper's DMESR as printed; `dmesr` is ours, and the same number is what it has to be held against.
_ALSO = {"dmesrpaper": "dmesr"}
_METRICS = {"hr@10": "hr", "ndcg@10": "ndcg"}


def table_2(dataset: str, *, backbone: str, method: str, metric: str) -> PaperValue | None:
    """What Table 2 prints for a method.

    Args:
        dataset: The dataset's name, "amazon_games" or "amazon-games" alike.
        backbone: For instance "sasrec".
        method: For instance "xreflect" or "x-reflect".
        metric: "hr@10" or "ndcg@10" of the sampled protocol.

    Returns:
        None where the paper has no such cell.
    """
    rows = TABLE_2.get(dataset.replace("_", "-"), {}).get(backbone, {})
    plain = method.replace("-", "").replace("_", "")
    return _value(rows.get(_ALSO.get(plain, plain)), metric, "Table 2")


def table_3(dataset: str, *, backbone: str, without: str, metric: str) -> PaperValue | None:
    """What Table 3 prints for DMESR less one part; `without` is "" for the whole method."""
    rows = TABLE_3.get(backbone, {}) if dataset == "movielens" else {}
    return _value(rows.get(without), metric, "Table 3")


def _value(row: PaperRow | None, metric: str, source: str) -> PaperValue | None:
    field = _METRICS.get(metric)
    return PaperValue(getattr(row, field), source) if row is not None and field else None
