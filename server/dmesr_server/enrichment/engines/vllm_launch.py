"""Starts vLLM: its settings, and what becomes of its errors."""

from __future__ import annotations

import math
import os
from typing import Any

from dmesr_server import vllm_plugin
from dmesr_server.config import EnrichmentConfig, VllmConfig
from dmesr_server.enrichment import importing
from dmesr_server.errors import ServiceError
from dmesr_server.telemetry import traces

from . import model_files, vllm_log
from .model_files import ModelFiles

_PROCESSOR_CACHE_GIB = 0.5  # pictures that an item's routes share; vLLM's 4 GiB would only hold pictures of the past


def prepare(model: str) -> None:
    """Imports vLLM, in an environment that suits an enricher. Blocks.

    Args:
        model: For the message.

    Raises:
        ServiceError: DESCRIBER_UNAVAILABLE when it is not installed.
    """
    os.environ[vllm_plugin.ENRICHER_PID] = str(os.getpid())
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        # Threads of LanceDB, gRPC and torch run here: a fork could lock up.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_CONFIG_PATH": str(vllm_log.configuration()),
    }
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    try:
        with importing.alone:
            import vllm.v1.engine.async_llm  # noqa: F401
    except ImportError as error:
        why = f"vLLM is not installed on this machine or does not load ({error})"
        remedy = "pip install 'dmesr[vllm]', or choose the describer transformers or openai"
        raise model_files.unavailable(model, why, remedy) from error


def launch(files: ModelFiles, config: EnrichmentConfig) -> Any:
    """Loads a model in processes of vLLM's. Blocks, for minutes.

    Returns:
        A vllm.v1.engine.async_llm.AsyncLLM.

    Raises:
        ServiceError: DESCRIBER_UNAVAILABLE.
    """
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    folder = files.with_weights()
    settings = _settings(files, config, folder=str(folder), on_cpu=current_platform.is_cpu())
    if (endpoint := traces.vllm_endpoint()) is not None:
        from vllm.tracing import is_tracing_available

        if is_tracing_available():
            settings.setdefault("otlp_traces_endpoint", endpoint)
    mark = vllm_log.mark()
    try:
        arguments = AsyncEngineArgs(**settings)
    except TypeError as error:  # an unknown one
        remedy = "check enrichment.vllm.extra against vLLM's AsyncEngineArgs"
        raise model_files.unavailable(files.name, f"vLLM does not know a setting: {error}", remedy) from error
    except ValueError as error:
        raise _not_started(files.name, words_of(error)) from error
    try:
        running = AsyncLLM.from_engine_args(arguments)
    except Exception as error:  # whatever vLLM and its processes end with
        raise _not_started(files.name, vllm_log.cause(mark) or words_of(error)) from error
    if not running.model_config.is_multimodal_model:
        shut_down(running)
        why = "it is a language model without vision"
        raise model_files.unavailable(files.name, why, "choose a multimodal one (enrichment.mllm.model)")
    return running


def shut_down(running: Any) -> None:
    """Ends what `launch` returned, with all its processes. Blocks."""
    running.shutdown()


def context_tokens(files: ModelFiles, settings: VllmConfig) -> int:
    """The longest conversation: as configured, but no longer than the model was made for."""
    limit = files.context_tokens
    return min(limit, settings.max_model_len) if limit else settings.max_model_len


def words_of(error: BaseException) -> str:
    """The words of the error at the bottom: vLLM wraps what others raise."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _settings(files: ModelFiles, config: EnrichmentConfig, *, folder: str, on_cpu: bool) -> dict[str, Any]:
    given = config.vllm
    side_px = max(28, math.isqrt(config.mllm.max_pixels))
    context = context_tokens(files, given)
    settings: dict[str, Any] = {
        "model": folder,
        "served_model_name": files.name,
        "dtype": given.dtype,
        "quantization": given.quantization,
        "tensor_parallel_size": given.tensor_parallel_size,
        "gpu_memory_utilization": given.gpu_memory_utilization,
        "max_model_len": context,
        "max_num_seqs": given.max_num_seqs,
        "max_num_batched_tokens": max(given.max_num_batched_tokens, given.max_num_seqs),
        "enforce_eager": given.enforce_eager,
        "enable_prefix_caching": given.enable_prefix_caching,
        "trust_remote_code": given.trust_remote_code,
        # Otherwise memory for the largest picture that the model could take is set aside.
        "limit_mm_per_prompt": {"image": {"count": 1, "width": side_px, "height": side_px}, "video": 0},
        "mm_processor_cache_gb": _PROCESSOR_CACHE_GIB,
        "disable_log_stats": True,
    }
    patches = files.patches(max_pixels=config.mllm.max_pixels)
    if patches is not None:
        sizes = {"shortest_edge": patches.min_pixels, "longest_edge": patches.max_pixels}
        settings["mm_processor_kwargs"] = {"size": sizes}
    if on_cpu:
        # Where a prompt is read in parts, vLLM takes back a draw from its row's generator; a CPU's generators refuse,
        # and the process dies of it.
        settings["enable_chunked_prefill"] = False
        settings["max_num_batched_tokens"] = max(settings["max_num_batched_tokens"], context)
    return settings | given.extra


def _not_started(model: str, cause: str) -> ServiceError:
    remedy = "see the enricher's log and the settings of enrichment.vllm"
    if "memory" in cause.lower():
        remedy = (
            "lower enrichment.vllm.gpu_memory_utilization, max_model_len or max_num_seqs, take a smaller or quantised "
            "model, or end what else uses the memory"
        )
    return model_files.unavailable(model, f"vLLM did not start: {cause}", remedy)
