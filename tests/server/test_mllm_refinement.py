"""When a refinement stops, told by a script that stands in for the model."""

from collections.abc import Sequence

import pytest
from dmesr_server.enrichment import prompts, refinement
from dmesr_server.enrichment.engines import Turn
from dmesr_server.enrichment.refinement import Refined

OPENING = (Turn("system", "s"), Turn("user", "u"))
DRAFT = "A tense crime film about a detective."


async def refined(*answers: str | None, max_rounds: int = 3) -> tuple[Refined, list[tuple[Turn, ...]]]:
    """Answers are review, revision, review, revision, …; returns what came out and what was asked."""
    left, asked = list(answers), []

    async def ask_review(turns: Sequence[Turn]) -> str:
        asked.append(tuple(turns))
        answer = left.pop(0)
        assert answer is not None
        return answer

    async def ask_description(turns: Sequence[Turn]) -> str | None:
        asked.append(tuple(turns))
        return left.pop(0)

    outcome = await refinement.refine(
        opening=OPENING,
        draft=DRAFT,
        prompts=prompts.load(None),
        domain="film",
        language="en",
        max_rounds=max_rounds,
        ask_review=ask_review,
        ask_description=ask_description,
    )
    assert not left
    return outcome, asked


async def test_the_models_verdict_ends_it():
    outcome, asked = await refined("Nothing to add.")
    assert outcome == Refined(DRAFT, 1, "verdict", draft_words=4, new_words=())
    assert asked[0][2] == Turn("assistant", DRAFT)


async def test_a_revision_without_new_words_ends_it_and_stands():
    better = "A tense film: the detective hunts crime."
    outcome, _ = await refined("- say who hunts", better)
    # "hunts" alone is new, and fewer than two words are nothing.
    assert outcome == Refined(better, 1, "converged", draft_words=4, new_words=(1,))


async def test_rounds_end_at_their_number_and_start_from_the_version_at_hand():
    first = "A tense crime film about a detective and a thief in Los Angeles."
    second = "A tense crime film about a detective and a thief in Los Angeles, in cold blue night colours."
    outcome, asked = await refined("- the thief", first, "- the colours", second, max_rounds=2)
    assert outcome == Refined(second, 2, "max_rounds", draft_words=4, new_words=(3, 4))
    assert [turn.role for turn in asked[2]] == ["system", "user", "assistant", "user"]
    assert asked[2][2].text == first
    assert [turn.role for turn in asked[3]] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert asked[3][4].text == "- the colours"


async def test_words_of_an_earlier_version_are_not_new_again():
    away = "A quiet story of one thief and money."
    back = "A tense crime film about a detective and a thief and money."
    outcome, _ = await refined("x", away, "y", back)
    assert outcome.stop_reason == "converged"
    assert outcome.new_words == (5, 0)


async def test_an_unusable_revision_leaves_the_version_before():
    outcome, _ = await refined("- more", None)
    assert outcome == Refined(DRAFT, 1, "unusable_revision", draft_words=4, new_words=())


async def test_no_rounds_leave_the_draft():
    outcome, _ = await refined(max_rounds=0)
    assert (outcome.text, outcome.rounds) == (DRAFT, 0)


@pytest.mark.parametrize(
    ("points", "verdict"),
    [
        ("NOTHING TO ADD", True),
        ("Nothing to add. The description is complete.", True),
        ("", True),
        ("- the kite is missing", False),
        ("There is nothing to add about the plot, but the colours of the poster and the title are missing.", False),
    ],
)
def test_verdicts(points: str, verdict: bool):
    assert refinement.is_verdict(points) is verdict


def test_content_words():
    assert refinement.content_words("The kites' red kite, and 1995: it's a STORY of stories!") == {
        "kite",
        "red",
        "1995",
        "story",
    }
    assert refinement.content_words("红色风筝 kite") == {"红色", "色风", "风筝", "kite"}
