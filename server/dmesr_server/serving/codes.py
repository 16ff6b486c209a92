"""Items in eight bits: in a fraction of the time finds every item that can be among the best k, never one too few.

The exact best k then come of the few that are found. Each column of the items is scaled to −127…127 and rounded, and so
is each query; a processor multiplies such numbers several times as fast as floats, and they take a quarter of the
memory's time. How far such a score can be from the true one is known:

    |q·x − q̂·x̂| = |q·(x − x̂) + (q − q̂)·x̂| ≤ ‖q‖‖x − x̂‖ + ‖q − q̂‖‖x̂‖    (Cauchy–Schwarz)

so nothing that is more than twice that below the k-th best can be among the best k. A processor without VNNI adds two
products of such numbers in 16 bits, where 255·127 twice does not fit; there a query has 7 bits, and 128·127 twice does.

Shapes: N items, V width of the model's vectors, B queries, G queries of one run, S items of one slice, C scores of each
query, R rows found for all queries of a run.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort
from onnx import StringStringEntryProto, TensorProto, helper

from dmesr_server.serving import products
from dmesr_server.serving.barred import Barred
from dmesr_server.topk import candidates_of_each, kth_of_each

_LOG = logging.getLogger(__name__)
#: Items fewer than this share of all are scored by themselves: copying their vectors costs less then.
FEW = 1 / 32
_MOST = 127  # the largest code of an item
#: Numbers of the items' matrix below which floats are as quick.
_WORTH_CODES = 4_000_000
_SLICE_ITEMS = 65_536  # multiplied by one run: what making a slice holds meanwhile is several times its codes
_CODES = "codes.bin"
_GROUP_QUERIES = 16  # of one run: what comes out of it then stays near the core
_FORBIDDEN = int(np.iinfo(np.int32).min)  # the score of what may not be chosen
#: Added to the bound for what float32 itself rounds in a true score, as a share of ‖q‖‖x‖.
_FLOAT32 = 1e-5


@dataclass(frozen=True)
class _QueryRange:
    most: int  # the largest code
    zero: int  # added to the codes: the fast kernels want one side unsigned


_QUERY_RANGES = (_QueryRange(most=127, zero=128), _QueryRange(most=64, zero=64))


class Rows(Protocol):
    """A matrix whose rows need not lie in one piece."""

    @property
    def size(self) -> int:
        """Its numbers."""

    def __len__(self) -> int:
        """Its rows."""

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Some of them, one behind the other."""


class ItemCodes:
    """The items of one index in eight bits. Immutable; safe to call from several threads."""

    def __init__(self, vectors_NV: Rows):
        """Makes the codes.

        Args:
            vectors_NV: Finite float32; at least one item. They are gone through twice.

        Raises:
            RuntimeError: This processor's products are not exact, with no range of queries.
        """
        queries = _queries_here()
        if queries is None:
            raise RuntimeError("this processor's products of 8-bit numbers are not exact; use floats")
        self._range = queries
        # Reductions and rounding go slice by slice: nothing of the size of the matrix is made on the way.
        self._items = len(vectors_NV)
        parts = min(self._items, max(products.cores(), -(-self._items // _SLICE_ITEMS)))
        self._parts = products.cut(self._items, parts)
        most_V = np.max([np.abs(vectors_NV[part]).max(0) for part in self._parts], axis=0)
        self._units_V = np.where(most_V > 0, most_V / _MOST, 1).astype(np.float32)
        self._sessions = []
        self._rounding = self._longest = 0.0  # the largest ‖x − x̂‖ and ‖x̂‖, in units of the columns
        for part in self._parts:
            scaled_SV = vectors_NV[part] / self._units_V
            codes_SV = np.rint(scaled_SV)
            self._rounding = max(self._rounding, float(_lengths(scaled_SV - codes_SV).max()))
            self._longest = max(self._longest, float(_lengths(codes_SV).max()))
            self._sessions.append(_product(codes_SV.astype(np.int8), zero=queries.zero))

    def near(self, queries_BV: np.ndarray, k: int, barred: Barred) -> list[np.ndarray]:
        """For each query the rows that can be among its best k, ascending; int64. As a rule they are few.

        Args:
            queries_BV: Finite float32.
            k: At least 1.
            barred: What may not be chosen. It is never among the rows.
        """
        shifted_BV, reach_B = self._coded(queries_BV)
        found = []
        for start in range(0, len(shifted_BV), _GROUP_QUERIES):
            group = slice(start, start + _GROUP_QUERIES)
            found += self._near_group(shifted_BV[group], reach_B[group], k, barred.of(group))
        return found

    def _coded(self, queries_BV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The queries in eight bits, and the reach of each.

        An item whose whole-number score is more than the reach below another's is truly worse than it.
        """
        scaled_BV = queries_BV * self._units_V
        units_B1 = np.abs(scaled_BV).max(1, keepdims=True) / self._range.most
        scaled_BV /= np.where(units_B1 > 0, units_B1, 1)
        codes_BV = np.rint(scaled_BV)
        error_B = _lengths(scaled_BV) * (self._rounding + _FLOAT32 * self._longest)
        error_B += _lengths(scaled_BV - codes_BV) * self._longest
        return (codes_BV + self._range.zero).astype(np.uint8), np.ceil(2 * error_B).astype(np.int64) + 1

    def _near_group(self, shifted_GV: np.ndarray, reach_G: np.ndarray, k: int, barred: Barred) -> list[np.ndarray]:
        def multiply(session: ort.InferenceSession, part: slice) -> tuple[np.ndarray, np.ndarray]:
            scores_GS: np.ndarray = session.run(None, {"queries": shifted_GV})[0]
            barred.put(_FORBIDDEN, scores_GS, part)
            return scores_GS, candidates_of_each(scores_GS, k)

        def look(scores_GS: np.ndarray, part: slice) -> tuple[np.ndarray, np.ndarray]:
            rows_R, places_R = np.divmod(np.flatnonzero(scores_GS >= bound_G[:, None]), scores_GS.shape[1])
            return rows_R, places_R + part.start

        slices = list(zip(self._sessions, self._parts, strict=True))
        scored = products.at_once([functools.partial(multiply, session, part) for session, part in slices])
        candidates_GC = np.concatenate([candidates for _, candidates in scored], axis=1)
        floor_G = kth_of_each(candidates_GC, min(k, candidates_GC.shape[1])).astype(np.int64)
        bound_G = np.maximum(floor_G - reach_G, _FORBIDDEN + 1).astype(np.int32)
        looks = [
            functools.partial(look, scores_GS, part) for (scores_GS, _), part in zip(scored, self._parts, strict=True)
        ]
        # To wake a thread takes longer than to look at one query's scores.
        seen = products.at_once(looks) if len(shifted_GV) > 1 else [one() for one in looks]
        rows_R = np.concatenate([rows for rows, _ in seen])
        places_R = np.concatenate([places for _, places in seen])
        order_R = np.argsort(rows_R, kind="stable")  # a query's rows of one slice come before those of the next
        ends = np.cumsum(np.bincount(rows_R, minlength=len(shifted_GV)))
        return np.split(places_R[order_R], ends[:-1])


def codes_of(vectors_NV: Rows) -> ItemCodes | None:
    """The codes of a matrix; None where they do not pay or this processor's product of them is not exact."""
    return ItemCodes(vectors_NV) if vectors_NV.size >= _WORTH_CODES and _queries_here() else None


def _lengths(rows_SV: np.ndarray) -> np.ndarray:
    lengths_S: np.ndarray = np.sqrt(np.einsum("sv,sv->s", rows_SV, rows_SV))
    return lengths_S


def _product(codes_SV: np.ndarray, *, zero: int) -> ort.InferenceSession:
    """Multiplies queries [B, V] with these items: int32 [B, S]. The session keeps the codes in the kernel's order.

    The codes come to it in a file of their own, which it lets go of: of those inside the graph it keeps a second copy.
    """
    items, width = codes_SV.shape
    place = {"location": _CODES, "offset": "0", "length": str(codes_SV.nbytes)}
    codes = TensorProto(
        name="items",
        data_type=TensorProto.INT8,
        dims=[width, items],
        data_location=TensorProto.EXTERNAL,
        external_data=[StringStringEntryProto(key=key, value=value) for key, value in place.items()],
    )
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["queries", "items", "zero"], ["scores"])],
        "product",
        [helper.make_tensor_value_info("queries", TensorProto.UINT8, [None, width])],
        [helper.make_tensor_value_info("scores", TensorProto.INT32, [None, items])],
        [codes, helper.make_tensor("zero", TensorProto.UINT8, [], [zero])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # An arena keeps the scores of the largest group of queries for ever: of a million items 130 MB.
    options.enable_cpu_mem_arena = False
    with tempfile.TemporaryDirectory(prefix="dmesr-codes-") as folder:
        np.ascontiguousarray(codes_SV.T).tofile(Path(folder, _CODES))
        Path(folder, "product.onnx").write_bytes(model.SerializeToString())
        return ort.InferenceSession(str(Path(folder, "product.onnx")), options, providers=["CPUExecutionProvider"])


@functools.cache
def _queries_here() -> _QueryRange | None:
    """The finest range of queries whose sums of products are whole on this processor; None where none is."""
    codes_SV = np.full((64, 64), _MOST, np.int8)
    codes_SV[::2] *= -1
    for queries in _QUERY_RANGES:
        highest = np.full((3, 64), queries.zero + queries.most, np.uint8)
        (scores_BS,) = _product(codes_SV, zero=queries.zero).run(None, {"queries": highest})
        if (scores_BS == codes_SV.astype(np.int32).sum(1) * queries.most).all():
            return queries
    _LOG.info("this processor's products of 8-bit numbers overflow: recommendations use floats throughout")
    return None
