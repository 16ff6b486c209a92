"""The encoder that runs any sentence-transformers model in this process.

Shapes: N texts, U of them different, D the model's width.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmesr_server.config import EncoderConfig
from dmesr_server.cores import usable_cores
from dmesr_server.enrichment import importing
from dmesr_server.errors import ServiceError

from . import model_files

NAME = "sentence-transformers"
# On a CPU larger steps only add padding; on a GPU they fill it.
_CPU_STEP = 16
_LOG = logging.getLogger(__name__)


class SentenceTransformersEncoder:
    """Runs a model on the GPU, or on every core of the CPU."""

    name = NAME

    def __init__(self, config: EncoderConfig):
        """Finds the model's files; loads nothing.

        Raises:
            ServiceError: ENCODER_UNAVAILABLE when there is no such model.
        """
        self._files = model_files.find(config.model)
        self._device = config.device
        self._starting = asyncio.Lock()
        self._loaded: Any = None  # SentenceTransformer
        self._workers: ThreadPoolExecutor | None = None
        self.model = self._files.name
        self.revision = self._files.revision
        self.dim = self._files.dim
        self.batch_size = config.batch_size
        self._step = config.batch_size

    def recipe_fields(self) -> Mapping[str, Any]:
        """Model, revision, pooling, truncation and normalisation, as read from the model's files."""
        return {
            "name": self.name,
            "model": self.model,
            "revision": self.revision,
            "pooling": self._files.pooling,
            "max_tokens": self._files.max_tokens,
            "normalisation": "l2",
            "dtype": "float32",
            "dim": self.dim,
        }

    async def start(self) -> None:
        """Loads the model in a thread: a hub model's weights are fetched first where they are not there."""
        async with self._starting:
            if self._loaded is not None:
                return
            self._loaded, self._workers = await asyncio.to_thread(self._load)
            on_cpu = self._loaded.device.type == "cpu"
            self._step = min(self.batch_size, _CPU_STEP) if on_cpu else self.batch_size

    async def stop(self) -> None:
        """Lets go of model and threads."""
        workers, self._workers, self._loaded = self._workers, None, None
        if workers is not None:
            await asyncio.to_thread(workers.shutdown, cancel_futures=True)

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of length 1, in order: [N, D]. The same text is encoded once, texts of like length together."""
        assert self._workers is not None, "start() comes before encode()"
        vectors_ND = np.zeros((len(texts), self.dim), np.float32)
        unique = sorted(dict.fromkeys(texts), key=len, reverse=True)
        slices = [unique[start : start + self._step] for start in range(0, len(unique), self._step)]
        loop = asyncio.get_running_loop()
        steps = [loop.run_in_executor(self._workers, self._encode, part) for part in slices]
        try:
            encoded = await asyncio.gather(*steps)
        except BaseException:
            for step in steps:
                step.cancel()
            raise
        if unique:
            vectors_UD = np.concatenate(encoded)
            position = {text: index for index, text in enumerate(unique)}
            vectors_ND[:] = vectors_UD[[position[text] for text in texts]]
        return vectors_ND

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        try:
            vectors: NDArray[np.float32] = self._loaded.encode(
                texts, batch_size=len(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
            )
        except (RuntimeError, MemoryError) as error:  # torch: out of memory, a lost device
            raise model_files.unavailable(
                self.model,
                f"it failed on {len(texts)} texts: {error}",
                "lower enrichment.encoder.batch_size or choose another enrichment.encoder.device",
            ) from error
        return vectors.astype(np.float32, copy=False)

    def _load(self) -> tuple[Any, ThreadPoolExecutor]:
        with importing.alone:
            try:
                import torch
                import transformers

                model_class = _model_class()
            except ImportError as error:
                why = f"a package that it needs is not installed ({error.name or error})"
                raise model_files.unavailable(self.model, why, "pip install 'dmesr[server]'") from error
            transformers.utils.logging.disable_progress_bar()
        files = self._files
        if files.hub_name is not None:
            folder = model_files.from_hub(files.hub_name, revision=files.revision)
        else:
            folder = files.folder
        device = _device(torch) if self._device == "auto" else self._device
        try:
            with importing.alone:
                loaded = model_class(str(folder), device=device, local_files_only=True)
        except Exception as error:  # whatever transformers raises on files that are broken or not a model
            why = f"it cannot be loaded on {device} ({type(error).__name__}: {error})"
            raise model_files.unavailable(
                self.model, why, "see that its files are whole and that enrichment.encoder.device exists"
            ) from error
        self._check_width(loaded)
        threads = usable_cores() if device == "cpu" else 1
        _LOG.info("encoder loaded: encoder=%s device=%s threads=%d", self.model, device, threads)
        # On a CPU each thread runs a slice of its own on one core. Threads that share each product would wait for the
        # slowest at every layer: with other work on the machine that is many times slower.
        initializer = (lambda: torch.set_num_threads(1)) if device == "cpu" else None
        return loaded, ThreadPoolExecutor(threads, thread_name_prefix="encoder", initializer=initializer)

    def _check_width(self, loaded: Any) -> None:
        method = getattr(loaded, "get_embedding_dimension", None) or loaded.get_sentence_embedding_dimension
        width = method()
        if width != self.dim:
            raise ServiceError(
                "ENCODER_UNAVAILABLE",
                f"the encoder {self.model!r} gives vectors of width {width}, its files say {self.dim}; "
                "report this with the model's name",
                encoder=self.model,
                expected=self.dim,
                actual=width,
            )


def _model_class() -> type[Any]:
    """SentenceTransformer whose tokeniser is used by one thread at a time: it refuses more."""
    from sentence_transformers import SentenceTransformer

    lock = threading.RLock()

    class Model(SentenceTransformer):
        def preprocess(self, *args: Any, **kwargs: Any) -> Any:
            with lock:
                return super().preprocess(*args, **kwargs)

        def tokenize(self, *args: Any, **kwargs: Any) -> Any:  # what releases before 6 call
            with lock:
                return super().tokenize(*args, **kwargs)

    return Model


def _device(torch: Any) -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
