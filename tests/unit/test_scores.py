"""Scores kept as numbers are the scores that were taken in, each time they are read."""

import tracemalloc

from toy_engine import make_tokenizer

from service.engine.sequence import TokenLogprob
from service.tasks.scores import Scorer, Scores

TOKENIZER = make_tokenizer()
TEXT = "\u8ba1\u7b97 the sea"
ENTRIES = [
    TokenLogprob(
        token_id, None if i == 0 else -0.1 * i, tuple((token_id + k, -float(k)) for k in range(i % 4))
    )
    for i, token_id in enumerate(TOKENIZER.encode(TEXT))
]


def test_scores_are_what_was_taken_in() -> None:
    scores = Scores(TOKENIZER, offset=3)
    scores.add(ENTRIES[:2])
    scores.add(ENTRIES[2:])
    scorer = Scorer(TOKENIZER, offset=3)
    expected = [scorer.score(entry) for entry in ENTRIES]
    assert list(scores) == expected and list(scores) == expected
    assert len(scores) == len(expected) == len(ENTRIES)
    assert [score.logprob for score in scores] == [entry.logprob for entry in ENTRIES]


def test_a_token_with_ten_alternatives_takes_few_bytes() -> None:
    scores = Scores(TOKENIZER, offset=0)
    tracemalloc.start()
    scores.add(TokenLogprob(300, -0.5, tuple((i, -float(i)) for i in range(10))) for _ in range(10_000))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 250 * 10_000
