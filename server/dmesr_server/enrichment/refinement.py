"""Recursive refinement of the hybrid route (§3.2.1, steps 1–3): draft, review, revise, until a round adds nothing new.

"Nothing new" is measured: the content words of a revision that stand in no earlier version. The model's own verdict on
its description is the second sign.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from .engines import Turn
from .prompts import DONE, Prompts

#: Raise it with every change of the rule: it is part of each refined description's identity.
REFINEMENT_REVISION = "refinement-1"

#: A round that adds fewer new content words than this, or than this share of those that are there, adds nothing new.
NEW_WORDS = 2
NEW_SHARE = 0.04

VERDICT = "verdict"  # the model found nothing to add or correct
CONVERGED = "converged"  # the revision brought nothing new
MAX_ROUNDS = "max_rounds"
UNUSABLE_REVISION = "unusable_revision"  # the version before it stands

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+")
# Scripts that are written without spaces: pairs of characters stand in for words.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")
_VERDICT_CHARACTERS = 48  # a verdict is short; what follows it in a longer answer are points after all
_FUNCTION_WORDS = frozenset(
    """
    a an the this that these those it its he she they them his her their we you i and or but nor so yet if as than then
    of in on at to from by with without for about into over under between among through during after before above below
    up down out off is are was were be been being am has have had having do does did done will would can could may might
    must shall should not no only also too very more most much many some any each every all both few such own same other
    another which who whom whose what when where why how there here while because until against itself themselves
    himself herself
    """.split()  # noqa: SIM905 - as a list it would take a hundred lines
)


@dataclass(frozen=True)
class Refined:
    """The end of a refinement.

    Attributes:
        text: The last usable version.
        rounds: Reviews that were held.
        stop_reason: One of the constants of this file.
        draft_words: Different content words of the draft.
        new_words: Content words that each revision brought.
    """

    text: str
    rounds: int
    stop_reason: str
    draft_words: int
    new_words: tuple[int, ...]


#: Asks the model for points of a review: any answer, as it is.
AskReview = Callable[[Sequence[Turn]], Awaitable[str]]
#: Asks the model for a description; None where every attempt was unusable.
AskDescription = Callable[[Sequence[Turn]], Awaitable[str | None]]


async def refine(
    *,
    opening: Sequence[Turn],
    draft: str,
    prompts: Prompts,
    domain: str,
    language: str,
    max_rounds: int,
    ask_review: AskReview,
    ask_description: AskDescription,
) -> Refined:
    """Reviews and revises a draft.

    Every round starts from the opening and the version at hand, so that the prompt does not grow with the rounds and
    an engine with a prefix cache has read text and picture already.
    """
    text = draft
    said = content_words(draft)
    draft_words = len(said)
    new_words: list[int] = []
    for number in range(1, max_rounds + 1):
        reviewed = prompts.review(opening, text, domain=domain, language=language)
        points = await ask_review(reviewed)
        if is_verdict(points):
            return Refined(text, number, VERDICT, draft_words, tuple(new_words))
        revision = await ask_description(prompts.revise(reviewed, points, domain=domain, language=language))
        if revision is None:
            return Refined(text, number, UNUSABLE_REVISION, draft_words, tuple(new_words))
        text = revision
        new = content_words(text) - said
        new_words.append(len(new))
        if len(new) < max(NEW_WORDS, NEW_SHARE * len(said)):
            return Refined(text, number, CONVERGED, draft_words, tuple(new_words))
        said |= new
    return Refined(text, max_rounds, MAX_ROUNDS, draft_words, tuple(new_words))


def is_verdict(points: str) -> bool:
    """Whether a review says that nothing is to be added or corrected."""
    said = " ".join(points.split()).upper()
    return not said or (DONE in said and len(said) <= len(DONE) + _VERDICT_CHARACTERS)


def content_words(text: str) -> set[str]:
    """The different words of a text that carry content: lower case, plural and singular as one, numbers included."""
    words: set[str] = set()
    for unspaced in _UNSPACED.findall(text):
        words.update(unspaced[index : index + 2] for index in range(max(1, len(unspaced) - 1)))
    for found in _WORD.findall(_UNSPACED.sub(" ", text)):
        word = found.lower().replace("’", "'").removesuffix("'s")
        if word in _FUNCTION_WORDS or (len(word) < 3 and not word.isdigit()):
            continue
        words.add(_singular(word))
    return words


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
