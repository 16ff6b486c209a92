"""What a training run is made of: one frozen, typed value that a run folder and an artefact keep as JSON."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dmesr_trainer import typed_values
from dmesr_trainer.baseline_config import (
    CooccurrenceConfig,
    CpmmConfig,
    EaseConfig,
    FlagConfig,
    QarmConfig,
    XReflectConfig,
)

CoarseForm = Literal["anchor", "pooled", "concatenated"]
LossName = Literal["softmax", "bce"]
Ablation = Literal["alignment", "cross-attention", "original", "routes"]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The sequence model f_θ (§3.3.3)."""

    name: str = "sasrec"
    max_history: int = 50  # events: L
    layers: int = 2
    heads: int = 2
    dropout: float = 0.2  # share of activations
    hidden_share: float = 0.2  # of a window's events that BERT4Rec has to guess: ρ of its §3.6
    hidden_last_share: float = 0.1  # of the windows of which it has to guess the last event alone


@dataclass(frozen=True, kw_only=True)
class SourcesConfig:
    """Which sources of the recipe play which part.

    Attributes:
        coarse: The sources of the coarse view. The first is the anchor that the others are aligned to (eq. 3); where an
            item lacks it, the first of the others that it has stands in. Sources that the recipe lacks are left out.
        fine: The source of the fine view (eq. 4), or None for a model with the coarse view only.
        coarse_form: "anchor": the anchor's vector is the coarse view (§3.2.3). "pooled": the sum of those that the item
            has. "concatenated": one more Linear over all of them side by side (the paper's ablation without alignment).
        bias: Whether semantics also say how well an item sells; a new item has no bias of its own.
    """

    coarse: tuple[str, ...] = ("text", "hybrid", "image")
    fine: str | None = "original"
    coarse_form: CoarseForm = "anchor"
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The two Linears of eq. 1 and the whitening before them."""

    whiten: bool = True
    whitened_dims: int = 256  # at most
    items_per_dim: float = 10.0  # at least; else whitening a small catalogue makes all items orthogonal
    initial_std: float = 0.05  # of an adapted vector's numbers, where sources are whitened
    hidden_share: float = 0.5  # d1 = hidden_share · d0
    fold: bool = True  # multiply W2·W1 once a step instead of running every item through both


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Contrastive alignment of the coarse routes (eq. 2–3)."""

    weight: float = 0.05  # α of eq. 8
    temperature: float = 2.0  # τ
    positive_in_denominator: bool = False  # False is eq. 2 as printed; True is InfoNCE
    mask_equal_content: bool = True  # leave items with the same description out of the denominator
    max_items: int = 512  # unique items of a batch that are compared


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Bidirectional cross-attention (eq. 5)."""

    enabled: bool = True
    heads: int = 1
    residual: bool = True  # add what was refined to what it refines
    gate: bool = False  # learned factors, one a number and 0 at first, on what is added; needs the residual
    by_distance: bool = False  # a learned bias, 0 at first, for how many events lie between the two positions
    leaky: bool = False  # no causal mask, so that position k sees item k+1, its own label; only to show what that does


@dataclass(frozen=True, kw_only=True)
class IdConfig:
    """Vectors and biases learned for each item by its id."""

    vectors: bool = True
    bias: bool = True
    dropout: float = 0.0  # share of items that stand on their semantics alone in a step, as new items must


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The recommendation loss.

    Attributes:
        name: "softmax" over candidates, or "bce", the pairwise loss of eq. 7.
        candidates: How many random items join the batch's own as candidates of the softmax. 0 takes all items: exact,
            and fine for some ten thousand.
    """

    name: LossName = "softmax"
    candidates: int = 0


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """Adam (with decoupled weight decay) and when to stop."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 128  # windows
    windows: Literal["random", "last"] = "random"  # of a history longer than L
    epochs: int = 100  # at most
    patience: int = 20  # epochs without a better validation NDCG
    warmup_steps: int = 0
    decay: Literal["none", "cosine"] = "none"  # of the learning rate, over `epochs`


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """§4.1.4."""

    k: int = 10
    negatives: int = 100
    seed: int = 0  # of the negatives; not the run's seed, so that runs with other seeds meet the same candidates
    exclude_history: bool = True  # from the full ranking
    users_per_batch: int = 256


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what comes out of a run, besides the data."""

    method: str = "dmesr"
    dim: int = 128  # of one view: d
    seed: int = 0
    device: str = "auto"  # "auto", "cpu", "cuda"
    devices: int = 1  # processes that share every batch, one a device
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    ids: IdConfig = field(default_factory=IdConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    cooccurrence: CooccurrenceConfig = field(default_factory=CooccurrenceConfig)
    flag: FlagConfig = field(default_factory=FlagConfig)
    xreflect: XReflectConfig = field(default_factory=XReflectConfig)
    cpmm: CpmmConfig = field(default_factory=CpmmConfig)
    qarm: QarmConfig = field(default_factory=QarmConfig)
    ease: EaseConfig = field(default_factory=EaseConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @classmethod
    def preset(cls, method: str, *, backbone: str = "sasrec", **changes: Any) -> TrainConfig:
        """The settings that a method is meant to run with.

        Args:
            method: One of `METHODS`.
            backbone: One of `BACKBONES`; its own settings, the same for every method, go over the method's.
            **changes: Other fields of `TrainConfig`, or of its parts as "part__field".

        Raises:
            ValueError: The method, the backbone or a field is unknown.
        """
        if method not in _PRESETS:
            raise ValueError(f"unknown method {method!r}; choose one of {', '.join(sorted(_PRESETS))}")
        if backbone not in BACKBONES:
            raise ValueError(f"unknown backbone {backbone!r}; choose one of {', '.join(BACKBONES)}")
        base = cls(method=method, backbone=BackboneConfig(name=backbone))
        return base.changed(**{**_PRESETS[method], **_BACKBONE_PRESETS[backbone], **changes})

    def changed(self, **changes: Any) -> TrainConfig:
        """A copy with some fields changed; "part__field" reaches into a part.

        Raises:
            ValueError: A field is unknown or a value has another type.
        """
        own = {key: value for key, value in changes.items() if "__" not in key}
        parts: dict[str, dict[str, Any]] = {}
        for key, value in changes.items():
            if "__" in key:
                part, name = key.split("__", 1)
                parts.setdefault(part, {})[name] = value
        for part, values in parts.items():
            known = getattr(self, part, None)
            if not dataclasses.is_dataclass(known):
                raise ValueError(f"unknown setting {part!r}; the parts with settings are {', '.join(_parts(self))}")
            checked = typed_values.check_fields(type(known), values, path=f"{part}.")
            own[part] = dataclasses.replace(known, **checked)  # type: ignore[type-var]
        return dataclasses.replace(self, **typed_values.check_fields(type(self), own))

    def without(self, *ablations: Ablation) -> TrainConfig:
        """The method less one of its parts (Table 3).

        Args:
            *ablations: "alignment" (w/o CL: the routes are concatenated), "cross-attention" (w/o CA), "original"
                (w/o Ori-view), "routes" (w/o TWP: the text route alone).

        Raises:
            ValueError: An ablation is unknown.
        """
        config = self
        for ablation in ablations:
            match ablation:
                case "alignment":
                    config = config.changed(alignment__weight=0.0, sources__coarse_form="concatenated")
                case "cross-attention":
                    config = config.changed(fusion__enabled=False)
                case "original":
                    config = config.changed(sources__fine=None)
                case "routes":
                    config = config.changed(sources__coarse=config.sources.coarse[:1], sources__coarse_form="anchor")
                case _:
                    known = ", ".join(typing.get_args(Ablation))
                    raise ValueError(f"unknown part {ablation!r}; what can be left out is {known}")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON keeps them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The reverse of `to_dict`; what is left out has its default.

        Raises:
            ValueError: A key is unknown or a value has another type.
        """
        return typing.cast(TrainConfig, typed_values.make(cls, values))


def _parts(config: TrainConfig) -> list[str]:
    return [part.name for part in dataclasses.fields(config) if dataclasses.is_dataclass(getattr(config, part.name))]


# What a backbone needs to learn well, the same for every method on it.
_BACKBONE_PRESETS: dict[str, dict[str, Any]] = {
    "sasrec": {},
    "gru4rec": {"backbone__layers": 1},  # one layer did best in its paper
    # It learns from a share of the events at a time, so it needs more epochs; blocks that normalise last, a warm start.
    "bert4rec": {"optimiser__epochs": 40, "optimiser__warmup_steps": 100, "backbone__hidden_share": 0.4},
}
BACKBONES = tuple(_BACKBONE_PRESETS)

# What all learn with, so that comparisons are fair: the same windows, loss, bias, steps and width of an item's vector.
# A rate that falls to nothing within 30 epochs ends where 3e-4 held for 80 does, in under half the time.
_SHARED = {
    "optimiser__batch_size": 64,
    "optimiser__learning_rate": 1e-3,
    "optimiser__decay": "cosine",
    "optimiser__epochs": 30,
    "loss__candidates": 1024,
    "backbone__dropout": 0.4,
}

_PRESETS: dict[str, dict[str, Any]] = {
    "dmesr": {**_SHARED, "dim": 64, "sources__coarse_form": "pooled", "ids__dropout": 0.2},
    # The recipe as printed: eq. 1–8, the settings of §4.1.3, nothing that the paper does not name.
    "dmesr-paper": {
        "adapter__whiten": False,
        "alignment__weight": 0.1,
        "alignment__mask_equal_content": False,
        "fusion__residual": False,
        "ids__vectors": False,
        "ids__bias": False,
        "sources__bias": False,
        "loss__name": "bce",
        "optimiser__windows": "last",
        "backbone__heads": 1,
    },
    "none": {**_SHARED, "dim": 128},
    # The control: None that is told which items have a picture.
    "none-flag": {**_SHARED, "dim": 128},
    # The baselines of §4.1.2: one view, as wide as DMESR's two, and the same id part.
    "xreflect": {**_SHARED, "dim": 128, "ids__dropout": 0.2},
    "cpmm": {**_SHARED, "dim": 128, "ids__dropout": 0.2},
    "qarm": {**_SHARED, "dim": 128, "ids__dropout": 0.2},
    "popularity": {},
    "ease": {},
}
METHODS = tuple(_PRESETS)
# Methods that read nothing from the server.
METHODS_BY_ID = ("none", "popularity", "ease")
# Methods without a sequence model.
FLOORS = ("popularity", "ease")
