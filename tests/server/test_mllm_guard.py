"""What the guard strips and what it refuses."""

import pytest
from dmesr_server.enrichment import guard

FILM = "Heat is a tense crime film about a detective and a thief."


@pytest.mark.parametrize(
    "answer",
    [
        FILM,
        f"  {FILM}\n",
        f'"{FILM}"',
        f"“{FILM}”",
        f"**Description:** {FILM}",
        f"### Final Description\n\n{FILM}",
        f"Sure! Here is the description of the film:\n\n{FILM}",
        f"Certainly! {FILM}",
        f"Here's what I would write:\n{FILM}\n\nLet me know if you need anything else!",
        f"<think>The user wants a film.\nHm.</think>\n{FILM}",
        f"<answer>{FILM}</answer>",
        f"```text\n{FILM}\n```",
        "**Heat** is a *tense* crime film about a `detective` and a [thief](http://x.example).",
        f"Step 1: Draft: A film.\nStep 2: Better.\n**Step 3: Final Output:** {FILM}",
        f"- {FILM}",
        f"> {FILM}",
        f"{FILM}\n---\n",
        f"Revised paragraph: {FILM}",
    ],
)
def test_what_is_no_description_is_stripped(answer: str):
    assert guard.clean(answer) == FILM
    assert guard.problem(guard.clean(answer)) is None


@pytest.mark.parametrize(
    "text",
    [
        "Here is a man who fights: a hero of the streets.",
        'The film asks: "Who am I?" and answers with a smile.',
        "A 1995 film - one of two that year - about 7 thieves.",
        "Sure of himself, the thief plans one last robbery.",
        "Das Bild zeigt ein rotes Haus am Meer; die Stimmung ist ruhig.",
        "这部电影讲述了一个侦探和一个小偷的故事。",
        "The snake_case hero and the user_name villain meet.",
    ],
)
def test_a_description_is_left_as_it_is(text: str):
    assert guard.clean(text) == text
    assert guard.problem(text) is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", "empty"),
        ("<think>I never stop thinking", "empty"),
        ("---", "empty"),
        ("Film.", "word"),
        ("1234 5678 -- 90 %% 12 34", "letters"),
        ("The film shows caf\ufffd \ufffd\ufffd au lait.", "broken"),
        ("I'm sorry, I cannot see the picture.", "declines"),
        ("As an AI language model I have no eyes for this.", "declines"),
        ("very " * 30, "loops"),
        ("A film with a red car on a road. " * 6, "loops"),
        ("ha" * 40, "loops"),
        ("好看的电影" * 12, "loops"),
    ],
)
def test_what_is_unusable_is_refused(answer: str, said: str):
    assert said in (guard.problem(guard.clean(answer)) or "")


def test_a_refrain_is_no_loop():
    text = (
        "The poster shows a red kite over a dark sea, the title in white letters, and the keeper at the window. "
        "The kite stands for hope, the dark sea for what the girl fears, and the light for home."
    )
    assert guard.problem(text) is None


def test_a_cut_text_loses_its_broken_sentence_where_enough_is_left():
    assert guard.whole_sentences("One is here. Two is here. Three is bro") == "One is here. Two is here."
    assert guard.whole_sentences("A start. And then a very long sentence that never ends") == (
        "A start. And then a very long sentence that never ends"
    )
    assert guard.whole_sentences("第一句。第二句。第三") == "第一句。第二句。"


def test_points_of_a_review_stay_a_list():
    assert guard.points("**Missing:**\n\n1. The *kite*\n2) The year\n\n") == "Missing:\n- The kite\n- The year"
