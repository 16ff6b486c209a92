"""A model of transformers in memory: loads it, and runs batches of prompts with left padding.

Shapes: B rows of a batch, T tokens so far.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dmesr_server.config import EnrichmentConfig
from dmesr_server.enrichment import importing

from . import model_files
from .base import (
    EngineDown,
    Generation,
    PictureRejected,
    PromptTooLong,
    RequestFailed,
    Sampling,
    TokenCount,
    Turn,
)
from .model_files import ModelFiles

_LOG = logging.getLogger(__name__)
_EXTRA = "pip install 'dmesr[transformers]'"

Outcome = Generation | Exception


@dataclass(frozen=True, eq=False)
class Prompt:
    """One row of a batch.

    Attributes:
        turns: The conversation to continue.
        sampling: Of this row.
        began: Clock of `time.perf_counter` when it was asked for.
        given_up: Set when nobody waits for it any more.
    """

    turns: Sequence[Turn]
    sampling: Sampling
    began: float
    given_up: threading.Event = field(default_factory=threading.Event)

    @property
    def has_picture(self) -> bool:
        """Whether any turn shows one."""
        return any(turn.picture is not None for turn in self.turns)


def load(files: ModelFiles, config: EnrichmentConfig, *, context_tokens: int | None) -> LoadedModel:
    """Loads a model. Blocks.

    Args:
        files: The model.
        config: Device, dtype and the size of pictures.
        context_tokens: A longer prompt is refused.

    Raises:
        ServiceError: DESCRIBER_UNAVAILABLE.
    """
    with importing.alone:
        try:
            import torch  # noqa: F401
            from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig  # noqa: F401
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            raise model_files.unavailable(files.name, f"a package is not installed ({error})", _EXTRA) from error
        transformers_logging.disable_progress_bar()
    folder = str(files.with_weights())
    with importing.alone:
        return _load(files, config, folder=folder, context_tokens=context_tokens)


def _load(files: ModelFiles, config: EnrichmentConfig, *, folder: str, context_tokens: int | None) -> LoadedModel:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

    settings = config.transformers
    device = _device(torch) if settings.device == "auto" else settings.device
    dtype = _dtype(torch, device, settings.dtype, files.name)
    trust = settings.trust_remote_code
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, trust_remote_code=trust, local_files_only=True
        )
        model = model.to(device).eval()
    except ImportError as error:
        why = f"a package that it needs is not installed: {' '.join(str(error).split())}"
        raise model_files.unavailable(files.name, why, _EXTRA) from error
    except torch.OutOfMemoryError as error:
        remedy = "take a smaller model, a smaller enrichment.transformers.dtype, or the device cpu"
        raise model_files.unavailable(files.name, f"{device} has not enough memory: {error}", remedy) from error
    except Exception as error:  # whatever transformers raises on files that are broken or of another kind
        why = f"it cannot be loaded on {device} ({type(error).__name__}: {error})"
        remedy = "see that it is a multimodal model whose files are whole, and that the device exists"
        raise model_files.unavailable(files.name, why, remedy) from error
    if not hasattr(processor, "tokenizer"):
        why = "it has no processor of text and pictures"
        raise model_files.unavailable(files.name, why, "choose a multimodal model (enrichment.mllm.model)")
    processor.tokenizer.padding_side = "left"
    ends = _ends(model, processor.tokenizer)
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token_id = ends[0]
    # The model's own sampling settings would be mixed with those of a call.
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=list(ends), pad_token_id=processor.tokenizer.pad_token_id
    )
    patches = files.patches(max_pixels=config.mllm.max_pixels)
    if patches is not None:
        processor.image_processor.size = {"shortest_edge": patches.min_pixels, "longest_edge": patches.max_pixels}
    return LoadedModel(model, processor, device=device, ends=ends, context_tokens=context_tokens)


class LoadedModel:
    """A model and its processor. Used by one thread at a time, but for `count`."""

    def __init__(self, model: Any, processor: Any, *, device: str, ends: tuple[int, ...], context_tokens: int | None):
        self._model = model
        self._processor = processor
        self._ends = ends
        self._context_tokens = context_tokens
        self._tokenizing = threading.Lock()
        # Models that can think first are asked not to: a description needs no thoughts, and they cost tokens.
        thinks = "enable_thinking" in str(getattr(processor, "chat_template", ""))
        self._template_settings = {"enable_thinking": False} if thinks else {}
        self.device = device

    def release(self) -> None:
        """Lets go of the weights, and of what torch keeps of the GPU's memory."""
        import torch

        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def count(self, turns: Sequence[Turn]) -> TokenCount:
        """Tokens of a prompt."""
        return self._counted(self._inputs([turns])["input_ids"][0])

    def run(self, prompts: Sequence[Prompt]) -> list[Outcome]:
        """The answers of a batch, or why there is none; where the batch cannot be run whole, in parts."""
        import torch

        try:
            inputs = self._inputs([prompt.turns for prompt in prompts])
        except Exception as error:  # of one of them: which one shows when they are alone
            if len(prompts) > 1:
                return [self.run([prompt])[0] for prompt in prompts]
            why = f"{type(error).__name__}: {error}"
            return [PictureRejected(why) if prompts[0].has_picture else RequestFailed(why)]
        said = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        counts = [self._counted(row[attended]) for row, attended in said]
        too_long = [self._too_long(prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
        if any(too_long):
            fitting = [prompt for prompt, refused in zip(prompts, too_long, strict=True) if refused is None]
            done = iter(self.run(fitting) if fitting else ())
            return [refused or next(done) for refused in too_long]
        lengths = [count.total for count in counts]
        try:
            return self._generate(prompts, inputs, lengths)
        except torch.OutOfMemoryError as error:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(prompts) == 1:
                why = f"{self.device} has not enough memory for one prompt of {lengths[0]} tokens: {error}"
                return [RequestFailed(f"{why}; lower enrichment.mllm.max_pixels or max_tokens")]
            half = len(prompts) // 2
            _LOG.warning(
                "out of memory with a batch of %d: halved; lower enrichment.transformers.batch_size", len(prompts)
            )
            return self.run(prompts[:half]) + self.run(prompts[half:])
        except RuntimeError as error:
            if "CUDA error" in str(error) or "device-side" in str(error):
                return [EngineDown(f"{self.device} failed: {error}") for _ in prompts]
            return [RequestFailed(f"{type(error).__name__}: {error}") for _ in prompts]

    def _counted(self, tokens_T: Any) -> TokenCount:
        marker = getattr(self._model.config, "image_token_id", None)
        picture = int((tokens_T == marker).sum()) if marker is not None else 0
        return TokenCount(total=len(tokens_T), picture=picture)

    def _too_long(self, prompt: Prompt, count: TokenCount) -> PromptTooLong | None:
        room = None if self._context_tokens is None else self._context_tokens - prompt.sampling.max_tokens
        if room is None or count.total <= room:
            return None
        return PromptTooLong(expected=room, actual=count.total, picture=count.picture)

    def _inputs(self, prompts: Sequence[Sequence[Turn]]) -> Any:
        with self._tokenizing:
            return self._processor.apply_chat_template(
                [[_message(turn) for turn in turns] for turns in prompts],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
                **self._template_settings,
            )

    def _generate(self, prompts: Sequence[Prompt], inputs: Any, lengths: Sequence[int]) -> list[Outcome]:
        import torch

        from .transformers_sampling import RowEnds, RowSampling

        inputs = inputs.to(self.device)
        floating = {name: value for name, value in inputs.items() if torch.is_floating_point(value)}
        inputs.update({name: value.to(self._model.dtype) for name, value in floating.items()})
        start = inputs["input_ids"].shape[1]
        limits = [prompt.sampling.max_tokens for prompt in prompts]
        with torch.inference_mode():
            written_BT = self._model.generate(
                **inputs,
                max_new_tokens=max(limits),
                logits_processor=[RowSampling([prompt.sampling for prompt in prompts], inputs["attention_mask"])],
                stopping_criteria=[RowEnds(start, limits, [prompt.given_up for prompt in prompts])],
            )[:, start:].cpu()
        return [
            self._answer(prompt, row.tolist(), length)
            for prompt, row, length in zip(prompts, written_BT, lengths, strict=True)
        ]

    def _answer(self, prompt: Prompt, tokens: list[int], length: int) -> Generation:
        tokens = tokens[: prompt.sampling.max_tokens]
        end = next((index for index, token in enumerate(tokens) if token in self._ends), None)
        tokens = tokens if end is None else tokens[: end + 1]
        with self._tokenizing:
            text = self._processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return Generation(
            text=text,
            finish_reason="length" if end is None else "stop",
            tokens_in=length,
            tokens_out=len(tokens),
            tokens_cached=0,
            milliseconds=(time.perf_counter() - prompt.began) * 1e3,
            token_ids=tuple(tokens),
        )


def _message(turn: Turn) -> dict[str, Any]:
    text = {"type": "text", "text": turn.text}
    if turn.picture is None:
        return {"role": turn.role, "content": [text]}
    return {"role": turn.role, "content": [{"type": "image", "image": turn.picture}, text]}


def _ends(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends an answer."""
    stated = model.generation_config.eos_token_id
    ends = [stated] if isinstance(stated, int) else list(stated or ())
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(ends))


def _device(torch: Any) -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(torch: Any, device: str, wanted: str, name: str) -> Any:
    if wanted == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    dtype = getattr(torch, wanted, None)
    if not isinstance(dtype, torch.dtype):
        why = f"enrichment.transformers.dtype is {wanted!r}, which is no dtype"
        raise model_files.unavailable(name, why, "set auto, bfloat16, float16 or float32")
    return dtype
