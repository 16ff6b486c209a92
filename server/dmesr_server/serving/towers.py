"""The two towers of a model, run by onnxruntime.

Shapes: N items, B users, T history positions, D width of a source, V width of the model's vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from dmesr_server.serving.artefact import ITEM_TOWER, USER_TOWER, Artefact, Source, invalid

_ONNX_TYPES = {"tensor(float)": "float32", "tensor(bool)": "bool", "tensor(int64)": "int64"}
_MAX_ONNX_BYTES = 2**31 - 1  # what one protobuf message can hold


class ItemTower:
    """Sources of an item → its vector. Safe to call from several threads."""

    def __init__(self, *, path: Path, sources: Sequence[Source], vector_dim: int, threads: int):
        """Loads the graph.

        Args:
            path: `item_tower.onnx`.
            sources: What the manifest declares.
            vector_dim: V.
            threads: Threads of one call.

        Raises:
            ServiceError: INVALID_ARTEFACT when the graph's inputs or outputs are not those of the contract.
        """
        self.sources = tuple(sources)
        self.vector_dim = vector_dim
        self._session = _session(path, threads)
        inputs: dict[str, tuple[str, tuple[int | None, ...]]] = {}
        for source in sources:
            inputs[source.name] = ("float32", (None, source.dim))
            inputs[f"{source.name}_present"] = ("bool", (None,))
        _check_signature(self._session, path.name, inputs, {"vector": ("float32", (None, vector_dim))})

    def run(self, vectors: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray]) -> np.ndarray:
        """Computes item vectors.

        Args:
            vectors: For each source its matrix, float32 [N, D]; rows that are not present hold zeros.
            present: For each source a bool [N].

        Returns:
            float32 [N, V]. Whether it is finite is for the caller to check: one odd item is no fault of the others.

        Raises:
            ServiceError: INVALID_ARTEFACT when the graph fails or answers with another shape.
        """
        feeds: dict[str, np.ndarray] = {}
        for source in self.sources:
            feeds[source.name] = np.ascontiguousarray(vectors[source.name], np.float32)
            feeds[f"{source.name}_present"] = np.ascontiguousarray(present[source.name], bool)
        rows = len(feeds[self.sources[0].name])
        return _run(self._session, ITEM_TOWER, "vector", feeds, (rows, self.vector_dim))


class UserTower:
    """The vectors of a history → the user's vector. Safe to call from several threads."""

    def __init__(self, *, path: Path, vector_dim: int, threads: int):
        """Loads the graph.

        Raises:
            ServiceError: INVALID_ARTEFACT when the graph's inputs or outputs are not those of the contract.
        """
        self.vector_dim = vector_dim
        self._session = _session(path, threads)
        _check_signature(
            self._session,
            path.name,
            {"vectors": ("float32", (None, None, vector_dim)), "lengths": ("int64", (None,))},
            {"user": ("float32", (None, vector_dim))},
        )

    def run(self, vectors_BTV: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        """Computes user vectors.

        Args:
            vectors_BTV: The histories' vectors, oldest first, padded with zeros on the right; float32.
            lengths_B: How many positions of each row are real; int64.

        Returns:
            float32 [B, V].

        Raises:
            ServiceError: INVALID_ARTEFACT when the graph fails or answers with NaN, infinity or another shape.
        """
        feeds: dict[str, np.ndarray] = {
            "vectors": np.ascontiguousarray(vectors_BTV, np.float32),
            "lengths": np.ascontiguousarray(lengths_B, np.int64),
        }
        users_BV = _run(self._session, USER_TOWER, "user", feeds, (len(lengths_B), self.vector_dim))
        _check_finite(users_BV, USER_TOWER)
        return users_BV


def load_item_tower(artefact: Artefact, *, threads: int) -> ItemTower | None:
    """The artefact's item tower; None when the model reads no source."""
    manifest = artefact.manifest
    if not manifest.sources:
        return None
    return ItemTower(
        path=artefact.file(ITEM_TOWER), sources=manifest.sources, vector_dim=manifest.vector_dim, threads=threads
    )


def load_user_tower(artefact: Artefact, *, threads: int) -> UserTower:
    """The artefact's user tower."""
    return UserTower(path=artefact.file(USER_TOWER), vector_dim=artefact.manifest.vector_dim, threads=threads)


def rehearse(artefact: Artefact) -> None:
    """Runs both towers once on small inputs of several sizes: sizes must be dynamic and the answers finite.

    Raises:
        ServiceError: INVALID_ARTEFACT.
    """
    for name in artefact.manifest.files:
        if name.endswith(".onnx"):
            _forbid_external_data(artefact.file(name))
    item_tower = load_item_tower(artefact, threads=1)
    if item_tower is not None:
        for present in ([True], [True, False, True]):
            made_NV = item_tower.run(
                {s.name: np.full((len(present), s.dim), 0.1, np.float32) * np.c_[present] for s in item_tower.sources},
                {s.name: np.array(present) for s in item_tower.sources},
            )
            _check_finite(made_NV, ITEM_TOWER)
    user_tower = load_user_tower(artefact, threads=1)
    width, limit = artefact.manifest.vector_dim, artefact.manifest.max_history
    for positions, lengths in ((1, [1]), (3, [0, 3]), (limit + 1, [limit + 1, limit, limit - 1])):
        mask = np.arange(positions)[None, :, None] < np.array(lengths)[:, None, None]
        vectors = np.where(mask, np.float32(0.1), np.float32(0)) * np.ones((1, 1, width), np.float32)
        user_tower.run(vectors, np.array(lengths))


def _session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # what goes wrong is raised; warnings on stderr help nobody
    # Requests come at any moment: threads that spin while they wait would take the cores from the rest of the server.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # onnxruntime's exceptions have no common base below Exception.
    except Exception as error:
        raise invalid(f"{path.name} cannot be loaded: {_first_line(error)}", file=path.name) from error


def _check_signature(
    session: ort.InferenceSession,
    file: str,
    inputs: Mapping[str, tuple[str, tuple[int | None, ...]]],
    outputs: Mapping[str, tuple[str, tuple[int | None, ...]]],
) -> None:
    for kind, wanted, nodes in (("input", inputs, session.get_inputs()), ("output", outputs, session.get_outputs())):
        actual = {node.name: node for node in nodes}
        if set(actual) != set(wanted):
            raise invalid(
                f"{file}: expected the {kind}s {sorted(wanted)}, got {sorted(actual)}",
                file=file,
                expected=sorted(wanted),
                actual=sorted(actual),
            )
        for name, (dtype, dims) in wanted.items():
            node = actual[name]
            got = _ONNX_TYPES.get(node.type, node.type)
            # A symbolic or unknown size is None or a name; a number must be the contract's own.
            shape = [size if isinstance(size, int) else None for size in node.shape or []]
            fits = len(shape) == len(dims) and all(
                size is None or size == dim for size, dim in zip(shape, dims, strict=True)
            )
            if got != dtype or not fits:
                expected = f"{dtype}{_shape_text(dims)}"
                raise invalid(
                    f"{file}: {kind} {name} must be {expected}, ? being dynamic, got {got}{_shape_text(shape)}",
                    file=file,
                    tensor=name,
                    expected=expected,
                    actual=f"{got}{_shape_text(shape)}",
                )


def _shape_text(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _run(
    session: ort.InferenceSession, file: str, output: str, feeds: Mapping[str, np.ndarray], shape: tuple[int, int]
) -> np.ndarray:
    try:
        answer = np.asarray(session.run([output], dict(feeds))[0])
    except Exception as error:  # see _session
        raise invalid(f"{file} fails on a batch of {shape[0]}: {_first_line(error)}", file=file) from error
    if answer.shape != shape:
        raise invalid(
            f"{file} answered with shape {list(answer.shape)}, expected {list(shape)}",
            file=file,
            expected=list(shape),
            actual=list(answer.shape),
        )
    return answer


def _check_finite(answer: np.ndarray, file: str) -> None:
    if not np.isfinite(answer).all():
        raise invalid(f"{file} answered with NaN or infinity; export the model again", file=file)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _forbid_external_data(path: Path) -> None:
    """Weights outside the file would let an artefact read any file of the server."""
    if path.stat().st_size > _MAX_ONNX_BYTES:
        raise invalid(f"{path.name} is larger than the 2 GiB that an ONNX file can have", file=path.name)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no public home
        raise invalid(f"{path.name} is not an ONNX graph: {_first_line(error)}", file=path.name) from error
    graphs = [model.graph, *(info.algorithm for info in model.training_info)]
    graphs += [info.initialization for info in model.training_info]
    tensors = [tensor for graph in graphs for tensor in _tensors_of_graph(graph)]
    tensors += [tensor for function in model.functions for tensor in _tensors_of_nodes(function.node)]
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise invalid(
                f"{path.name}: tensor {tensor.name!r} keeps its data outside the file; export with all weights inside",
                file=path.name,
                tensor=tensor.name,
            )


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _tensors_of_graph(graph)
