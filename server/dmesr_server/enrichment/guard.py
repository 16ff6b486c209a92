"""What stands between a model's answer and the store: strips what is no description, refuses what is unusable."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

#: Raise it with every change below: it is part of each MLLM description's identity.
GUARD_REVISION = "guard-1"

_MIN_WORDS = 3
_MIN_LETTERS = 0.4  # share of letters among what is not white space
_MAX_BROKEN = 0.02  # share of replacement characters: bytes that were no text
_LOOP_WORDS = 4  # a repeated run of so many words is a sign of a loop …
_LOOP_SHARE = 0.4  # … when the repeats make up so much of the text
_LOOP_MIN_WORDS = 24  # shorter texts may repeat themselves
_LOOP_PERIOD, _LOOP_TIMES = 40, 8  # so many characters, so often in a row: "hahaha…", also where words are not spaced
_KEPT_SHARE = 0.5  # of a text cut at max_tokens that must be left when its last sentence is dropped

_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_TAGS = re.compile(r"</?(?:answer|description|paragraph|output)>|<\|[a-z_]+\|>", re.IGNORECASE)
_FENCE = re.compile(r"^```[^\n]*\n?|\n?```$")
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s.*$", re.MULTILINE)
_RULE = re.compile(r"^\s*([-*_=])\s*(?:\1\s*){2,}$", re.MULTILINE)
_BULLET = re.compile(r"^\s*(?:[-*•+]|\d{1,2}[.)])\s+", re.MULTILINE)
_QUOTE_LINE = re.compile(r"^\s*>\s?", re.MULTILINE)
_EMPHASIS = re.compile(r"(\*{1,3}|_{2,3}|~~|`)(?=\S)(.+?)(?<=\S)\1", re.DOTALL)
_LINK = re.compile(r"!?\[([^\]\n]*)\]\([^)\s]*\)")
# A short line that names what follows: "**Final description:**", "Step 3: Final Output:".
_LABEL = re.compile(
    r"^\W*(?:(?:step\s*\d+|\d+)\s*[.:)–-]\s*)?"
    r"(?:(?:the|my|your|a|an|here(?:'s| is)(?: the| a| an| my)?)\s+)?"
    r"(?:(?:final|revised|updated|refined|improved|new|initial|unified|rewritten|image|picture|item|product)\s+)*"
    r"(?:description|paragraph|output|answer|draft|version|summary|result)"
    r"(?:\s+(?:of|for)\s[^:\n]{1,80})?\s*:\W*(?=\S)",
    re.IGNORECASE,
)
_STEP = re.compile(
    r"(?:^|\n)\W*(?:step\s*3\b[^\n:]*|final\s+(?:output|description|paragraph|version))\W*:\W*(?=\w)", re.IGNORECASE
)
_WHAT = r"(?:description|paragraph|output|answer|draft|version|summary|text|result)"
_OPENING = re.compile(
    r"^(?:(?:sure|certainly|of course|absolutely|okay|ok|great|alright)\b[^.!:\n]{0,80}[.!:,]\s*)?"
    rf"(?:here(?:'s|’s| is| are)\b[^:\n.]{{0,80}}\b{_WHAT}\b[^:\n.]{{0,80}}:\s*"
    r"|here(?:'s|’s| is)\b[^:\n.]{0,80}:\s*\n\s*|(?:sure|certainly|of course|absolutely)[.!:]\s*)",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"(?:(?<=[.!?\"”])|\n)\s*(?:let me know\b|i hope (?:this|that)\b|please let me know\b|feel free to\b|"
    r"would you like me to\b|if you(?:'d| would) like\b[^.!?]*\b(?:let me|i can)\b|note:|\(note:|word count:)[^\n]*$",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"^(?:i(?:'m|’m| am) (?:sorry|unable|not able)\b|sorry,|as an ai\b|"
    r"i (?:cannot|can't|can’t|do not|don't|don’t) (?:see|view|assist|help|provide|have (?:access|the ability)))",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "“": "”", "«": "»", "„": "“", "'": "'"}
_SENTENCE_END = re.compile(r"[.!?。！？…][\"”»')\]]*(?=\s|$)|[。！？]")


def clean(text: str) -> str:
    """A description without thinking, greetings, labels, markdown and quotation marks around it, as one paragraph."""
    text = _THINKING.sub(" ", text)
    text = _TAGS.sub(" ", text)
    text = _printable(text)
    text = _FENCE.sub("", text.strip())
    for pattern in (_HEADING, _RULE):
        text = pattern.sub("", text)
    text = _QUOTE_LINE.sub("", text)
    text = _LINK.sub(r"\1", text)
    text = _EMPHASIS.sub(r"\2", text)
    text = _EMPHASIS.sub(r"\2", text)  # bold in italics
    steps = list(_STEP.finditer(text))
    if steps and len(text) - steps[-1].end() >= _MIN_WORDS:
        text = text[steps[-1].end() :]
    text = _BULLET.sub("", text).strip()
    text = _OPENING.sub("", text)
    text = _LABEL.sub("", text)
    text = _CLOSING.sub("", text.strip())
    return _unquoted(" ".join(text.split()))


def points(text: str) -> str:
    """The points of a review, one on a line, without thinking, markdown and tags."""
    text = _TAGS.sub(" ", _THINKING.sub(" ", text))
    text = _printable(text)
    for pattern in (_HEADING, _RULE, _QUOTE_LINE):
        text = pattern.sub("", text)
    text = _EMPHASIS.sub(r"\2", _EMPHASIS.sub(r"\2", text))
    lines = (" ".join(line.split()) for line in _BULLET.sub("- ", text).splitlines())
    return "\n".join(line for line in lines if line and line != "-")


def _printable(text: str) -> str:
    """The text with white space for what cannot be printed, lines apart."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def whole_sentences(text: str) -> str:
    """A text that was cut at the limit of tokens, without its last, broken sentence, where enough is left."""
    ends = list(_SENTENCE_END.finditer(text))
    if not ends or ends[-1].end() < _KEPT_SHARE * len(text):
        return text
    return text[: ends[-1].end()]


def problem(text: str) -> str | None:
    """Why a cleaned text is no description; None when it may be one."""
    if not text:
        return "the answer is empty"
    solid = [character for character in text if not character.isspace()]
    if text.count("\ufffd") > _MAX_BROKEN * len(solid):
        return "the answer holds broken characters"
    if sum(character.isalpha() for character in solid) < _MIN_LETTERS * len(solid):
        return "the answer is mostly no letters"
    words = text.lower().split()
    if len(words) < _MIN_WORDS and len(solid) < 12:
        return f"the answer has only {len(words)} word(s): {text!r:.60}"
    if _REFUSAL.match(text):
        return f"the model declines: {text!r:.120}"
    return _loop(text, words)


def _loop(text: str, words: list[str]) -> str | None:
    if unit := _repeated(text):
        return f"the answer loops: {unit!r} again and again"
    if len(words) < _LOOP_MIN_WORDS:
        return None
    runs = Counter(tuple(words[start : start + _LOOP_WORDS]) for start in range(len(words) - _LOOP_WORDS + 1))
    repeats = sum(count - 1 for count in runs.values())
    if repeats > _LOOP_SHARE * sum(runs.values()):
        return f"the answer loops: {' '.join(runs.most_common(1)[0][0])!r:.80} again and again"
    return None


def _repeated(text: str) -> str:
    """The shortest run of characters that comes many times in a row; empty where none does."""
    codes_N = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    for period in range(1, min(_LOOP_PERIOD, len(codes_N) // _LOOP_TIMES) + 1):
        wanted = (_LOOP_TIMES - 1) * period
        differs = np.flatnonzero(codes_N[period:] != codes_N[:-period])
        if len(codes_N) - period - len(differs) < wanted:
            continue  # too few are equal, wherever they stand
        bounds = np.concatenate([[-1], differs, [len(codes_N) - period]])
        longest = int(np.argmax(np.diff(bounds)))
        if bounds[longest + 1] - bounds[longest] - 1 >= wanted:
            start = int(bounds[longest]) + 1
            return text[start : start + period]
    return ""


def _unquoted(text: str) -> str:
    close = _QUOTES.get(text[:1])
    if close and len(text) > 2 and text.endswith(close) and close not in text[1:-1]:
        return text[1:-1].strip()
    return text
