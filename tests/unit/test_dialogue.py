"""Conversations in stories: who says what, and where one ends."""

from model_store.recipes.dialogue import Reply, replies

STORY = """It was late.
"Who is there?" asked the hare.
"Only me," said the fox. "Let me in."
“And why should I?”
The door stayed shut.
"Good night."
"Sleep well." """


def test_turns_follow_each_other_until_a_paragraph_without_speech() -> None:
    assert list(replies(STORY)) == [
        Reply("A: Who is there?", "B", "Only me, Let me in."),
        Reply("A: Who is there?\nB: Only me, Let me in.", "A", "And why should I?"),
        Reply("A: Good night.", "B", "Sleep well."),
    ]


def test_a_comma_before_the_narrator_becomes_a_full_stop() -> None:
    found = list(replies('"Come in," said he.\n"No," said she.'))
    assert found == [Reply("A: Come in.", "B", "No.")]


def test_history_is_bounded_and_starts_with_a() -> None:
    found = list(replies("\n".join(f'"Turn {n}."' for n in range(9))))
    assert found[-1].history.splitlines() == [
        "A: Turn 3.",
        "B: Turn 4.",
        "A: Turn 5.",
        "B: Turn 6.",
        "A: Turn 7.",
    ]
    assert (found[-1].speaker, found[-1].text) == ("B", "Turn 8.")


def test_a_speech_is_no_turn() -> None:
    assert list(replies('"Yes?"\n"' + "word " * 70 + '"\n"No."')) == []


def test_words_between_two_speeches_are_the_narrators() -> None:
    assert [reply.text for reply in replies('"Who?"\n"I" said the fox, "am here."')] == ["am here."]
