"""Settings of the baselines and the floors; parts of `TrainConfig`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CooccurrenceConfig:
    """Which items count as bought or seen together, by training events alone."""

    window: int = 5  # events to either side; 0 takes any two items of a user
    neighbours: int = 20  # kept for each item, by cosine of the counts; 0 keeps all


@dataclass(frozen=True, kw_only=True)
class FlagConfig:
    """The control `none-flag`: ids, and whether the item has a vector of a source, which tells popularity by itself."""

    source: str = "image"


@dataclass(frozen=True, kw_only=True)
class XReflectConfig:
    """X-REFLECT (Lyu et al. 2024): descriptions side by side. Sources that the recipe lacks are left out, and noted."""

    sources: tuple[str, ...] = ("reflect", "text", "image", "hybrid")


@dataclass(frozen=True, kw_only=True)
class CpmmConfig:
    """CPMM (Mo et al. 2025).

    Attributes:
        text: The source of the textual representation.
        image: The source of the visual one.
        noise: Standard deviation of the Gaussian noise, as a share of the source vectors' own. The authors add 0.002 to
            unit vectors of 512 numbers, which is a share of 0.045.
        contrast: λ1, of the contrast between text and image.
        shift: λ2, of the L2-shift loss.
        cooccurrence: λ3, of the co-occurrence loss.
        temperature: Of the cosines in both losses; the authors multiply them by 100.
        pretrain_epochs: Passes over the items before the recommender is trained; 0 leaves them out.
        pretrain_batch: Items.
        pretrain_learning_rate: Of Adam.
        weight: Of the three losses while the recommender is trained. 0 is the authors' form, which leaves them behind.
        max_items: Unique items of a batch that enter the three losses.
        normalise: The authors' form: unit vectors are added. Otherwise only the losses normalise.
        freeze: The authors' form: the recommender learns nothing more of what text and image became.
    """

    text: str = "text"
    image: str = "image"
    noise: float = 0.045
    contrast: float = 2.0
    shift: float = 1.0
    cooccurrence: float = 1.0
    temperature: float = 0.01
    pretrain_epochs: int = 20
    pretrain_batch: int = 512
    pretrain_learning_rate: float = 1e-3
    weight: float = 0.01
    max_items: int = 512
    normalise: bool = False
    freeze: bool = False


@dataclass(frozen=True, kw_only=True)
class QarmConfig:
    """QARM (Luo et al. 2024).

    Attributes:
        sources: Read side by side; those that the recipe lacks are left out.
        width: Numbers of the fine-tuned representation that is quantised.
        pretrain_epochs: Passes over the items, each with one of its companions at random; 0 leaves the tuning out.
        pretrain_batch: Pairs.
        pretrain_learning_rate: Of Adam.
        temperature: Of the cosines in the batch contrast; the paper gives none.
        vq_codes: Nearest entries that an item takes as codes; 0 leaves VQ out.
        vq_entries: Of the codebook. 0 takes the representation of every item with training events, as the paper does
            (items with the same vectors once); else so many k-means centres.
        rq_levels: Residual levels, each a code; 0 leaves RQ out.
        rq_clusters: K-means centres of a level, at most a quarter of the items; the paper gives none.
    """

    sources: tuple[str, ...] = ("hybrid", "text", "image")
    width: int = 64
    pretrain_epochs: int = 30
    pretrain_batch: int = 512
    pretrain_learning_rate: float = 1e-3
    temperature: float = 0.1
    vq_codes: int = 25
    vq_entries: int = 0
    rq_levels: int = 6
    rq_clusters: int = 256


@dataclass(frozen=True, kw_only=True)
class EaseConfig:
    """EASE (Steck 2019).

    Attributes:
        l2: λ, the only number that is tuned: some hundreds or thousands on dense data, tens on sparse.
        history: The last so many items of a history are what a user is scored by.
        train_last: The last so many training events of each user fill the matrix; 0 takes all.
        rank: Of the two factors that an artefact holds. At the number of users it is exact, but for an item's own
            weight where a history holds it.
        max_items: Refuses larger catalogues: the closed form holds 12 bytes for each pair of items.
    """

    l2: float = 500.0
    history: int = 20
    train_last: int = 0
    rank: int = 256
    max_items: int = 20_000
