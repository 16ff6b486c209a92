"""How a conversation is written for a chat endpoint, and how its answers, refusals and lists of models are read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dmesr_server.enrichment.openai_endpoint import Malformed, Refused

from .base import EngineError, Generation, PictureRejected, PromptTooLong, RequestFailed, Sampling, Turn


@dataclass(frozen=True)
class Dialect:
    """What a server takes beyond the fields that all have.

    Attributes:
        repetition_penalty: Its name for it.
        fields: Switch off what would otherwise come from the model's own settings and change the texts unseen.
        counts: Whether it counts the tokens of a chat beside the API, at /tokenize.
    """

    repetition_penalty: str = "repetition_penalty"
    fields: Mapping[str, Any] = field(default_factory=dict)
    counts: bool = False


_NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
_PLAIN = Dialect()
# By the owner that a server's list of models names.
_DIALECTS = {
    "vllm": Dialect(fields={"top_k": 0, "min_p": 0.0, **_NO_THINKING}, counts=True),
    "sglang": Dialect(fields={"top_k": -1, "min_p": 0.0, **_NO_THINKING}),
    "llamacpp": Dialect("repeat_penalty", {"top_k": 0, "min_p": 0.0, **_NO_THINKING}),
}

_PICTURE = re.compile(r"image|picture|vision|multi-?modal|mmproj|modalit", re.IGNORECASE)
_SAMPLING = ("seed", "temperature", "top_p", "repetition_penalty", "repeat_penalty", "top_k", "min_p")


@dataclass(frozen=True)
class Wording:
    """How one endpoint wants to be asked; settled when it is started.

    Attributes:
        model: As the endpoint calls it.
        dialect: Of the server.
        max_tokens: The field's name: some models of OpenAI know "max_completion_tokens" only.
        omitted: Fields that are not sent.
        extra: Further fields, over all others.
    """

    model: str
    dialect: Dialect = _PLAIN
    max_tokens: str = "max_tokens"
    omitted: frozenset[str] = frozenset()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def body(self, turns: Sequence[Turn], pictures: Mapping[int, str], sampling: Sampling) -> dict[str, Any]:
        """The request.

        Args:
            turns: The conversation.
            pictures: Data URIs by the turn's place.
            sampling: How tokens are drawn.
        """
        fields: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            **self.dialect.fields,
        }
        # Elsewhere the field is unknown and 1 is what happens anyway.
        if sampling.repetition_penalty != 1 or self.dialect is not _PLAIN:
            fields[self.dialect.repetition_penalty] = sampling.repetition_penalty
        kept = {name: value for name, value in fields.items() if name not in self.omitted}
        return {
            "model": self.model,
            "messages": messages(turns, pictures),
            self.max_tokens: sampling.max_tokens,
            **kept,
            **self.extra,
        }


def dialect(owner: str) -> Dialect:
    """What the server of this owner takes."""
    return _DIALECTS.get(owner, _PLAIN)


def generation(answer: Any) -> Generation:
    """Reads an answer; its milliseconds are left at 0.

    Raises:
        Malformed: It is no answer of a chat endpoint.
        RequestFailed: The model or a filter refuses.
    """
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        content = message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Malformed("JSON without a choice and its message") from error
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    if not isinstance(content, str | None):
        raise Malformed(f"a message whose content is of the type {type(content).__name__}")
    finish = choice.get("finish_reason")
    if not content and message.get("refusal"):
        raise RequestFailed(f"the model declines: {message['refusal']!s:.200}")
    if finish == "content_filter":
        raise RequestFailed("the endpoint's content filter holds the answer back")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else usage.get("prompt_cache_hit_tokens")
    return Generation(
        text=content or "",
        finish_reason="length" if finish == "length" else "stop",
        tokens_in=_count(usage.get("prompt_tokens")),
        tokens_out=_count(usage.get("completion_tokens")),
        tokens_cached=_count(cached),
        milliseconds=0.0,
    )


def counted(answer: Any) -> int:
    """Reads how many tokens a chat has.

    Raises:
        Malformed: It does not tell.
    """
    if not isinstance(answer, Mapping) or type(answer.get("count")) is not int:
        raise Malformed("JSON without a count")
    return int(answer["count"])


def refused(error: Refused, *, sampling: Sampling, has_picture: bool) -> EngineError:
    """What a refusal means."""
    told = error.told
    if told.is_too_long:
        room = told.limit_tokens - sampling.max_tokens
        if 0 < room < told.actual_tokens:
            return PromptTooLong(expected=room, actual=told.actual_tokens)
        return PromptTooLong(expected=0, actual=0)
    if has_picture and (error.status == 413 or _PICTURE.search(told.message)):
        return PictureRejected(str(error))
    return RequestFailed(str(error))


def refused_field(error: Refused) -> str:
    """The field of the sampling that the endpoint does not take; empty when it is about something else."""
    if error.status not in (400, 422):
        return ""
    named = [name for name in _SAMPLING if name == error.told.parameter]
    named += [name for name in _SAMPLING if re.search(rf"\b{name}\b", error.told.message)]
    return named[0] if named else ""


def wants_completion_tokens(error: Refused) -> bool:
    """Whether the endpoint knows "max_tokens" by its newer name only."""
    return "max_completion_tokens" in error.told.message and error.status == 400


@dataclass(frozen=True)
class Listed:
    """What an endpoint's list of models tells.

    Attributes:
        names: Of its models.
        owner: Who serves the model, for instance "vllm"; of any model where ours is not listed.
        found: Whether ours is listed.
        context_tokens: Of ours; None where it does not tell.
        sees: Whether ours takes pictures; None where it does not tell.
    """

    names: tuple[str, ...] = ()
    owner: str = ""
    found: bool = False
    context_tokens: int | None = None
    sees: bool | None = None


def listed(answer: Any, model: str) -> Listed:
    """Reads a list of models.

    Raises:
        Malformed: It is none.
    """
    entries = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(entries, list):
        raise Malformed("JSON that is no list of models")
    entries = [entry for entry in entries if isinstance(entry, Mapping)]
    ours = next((entry for entry in entries if entry.get("id") == model), None)
    if ours is None and len(entries) == 1 and entries[0].get("owned_by") == "llamacpp":
        ours = entries[0]  # it serves its one model under any name
    entry = ours or (entries[0] if entries else {})
    if ours is not None:
        ours = {"capabilities": _capabilities(answer, ours), **ours}
    return Listed(
        names=tuple(str(entry.get("id")) for entry in entries),
        owner=str(entry.get("owned_by") or "").lower(),
        found=ours is not None,
        context_tokens=None if ours is None else _context(ours),
        sees=None if ours is None else _sees(ours),
    )


def _context(entry: Mapping[str, Any]) -> int | None:
    # As vLLM and SGLang, OpenRouter, Groq and Mistral call it.
    for name in ("max_model_len", "context_length", "context_window", "max_context_length"):
        if type(entry.get(name)) is int and entry[name] > 0:
            return int(entry[name])
    return None


def _capabilities(answer: Mapping[str, Any], entry: Mapping[str, Any]) -> Any:
    """Those that llama.cpp lists beside the models, under the same name."""
    beside = answer.get("models")
    for other in beside if isinstance(beside, list) else ():
        if isinstance(other, Mapping) and entry.get("id") in (other.get("model"), other.get("name")):
            return other.get("capabilities")
    return None


def _sees(entry: Mapping[str, Any]) -> bool | None:
    architecture, capabilities = entry.get("architecture"), entry.get("capabilities")
    if isinstance(architecture, Mapping) and isinstance(architecture.get("input_modalities"), list):
        return "image" in architecture["input_modalities"]  # OpenRouter
    if isinstance(capabilities, list) and capabilities:
        return "multimodal" in capabilities  # llama.cpp
    if isinstance(capabilities, Mapping) and isinstance(capabilities.get("vision"), bool):
        return bool(capabilities["vision"])  # Mistral
    return None


def messages(turns: Sequence[Turn], pictures: Mapping[int, str]) -> list[dict[str, Any]]:
    """A conversation as the API has it; the pictures by the turn's place."""
    return [_message(turn, pictures.get(index)) for index, turn in enumerate(turns)]


def _message(turn: Turn, picture: str | None) -> dict[str, Any]:
    if picture is None:
        return {"role": turn.role, "content": turn.text}
    shown = {"type": "image_url", "image_url": {"url": picture}}
    return {"role": turn.role, "content": [shown, {"type": "text", "text": turn.text}]}


def _count(value: Any) -> int:
    try:
        return max(0, int(value or 0))
    except (TypeError, ValueError):
        return 0
