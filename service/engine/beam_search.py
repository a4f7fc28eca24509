"""Which continuations of its beams a search goes on with, which of its texts have ended, and when it is done.

The rules are those of transformers' `generate`, down to their order: of all continuations the best
`num_beams` may end a text and the best `num_beams` that end none go on; a text that ended is worth its log
probability divided by its length to the power of `length_penalty`; the search is done once `num_beams` texts
have ended and, by `early_stopping`, none that is on its way is expected to be worth more. One search, no
tensor and no place in any queue: `beams` says which sequences compute what it asks for.

Source: transformers 5, `GenerationMixin._beam_search`; texts and scores are compared with its own by a test.
"""

from __future__ import annotations

import collections.abc
import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from service.engine.detokenizer import Detokenizer
from service.engine.sequence import FinishReason, SamplingParams, TokenLogprob


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may come next in a beam, likeliest first, with log probabilities as the processors leave them."""

    token_ids: tuple[int, ...]
    scores: tuple[float, ...]
    logprobs: tuple[TokenLogprob, ...] = ()  # raw, where they are wanted


@dataclass(frozen=True, slots=True)
class Beam:
    """A text so far."""

    reader: Detokenizer  # as it stands behind the newest token
    parent: int = 0  # index among the beams of the step before, from which it goes on
    token_ids: tuple[int, ...] = ()  # generated
    total: float = 0.0  # of its tokens' log probabilities, as the processors leave them
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()  # raw, where they are wanted
    finish_reason: FinishReason | None = None


class BeamSearch:
    """One search, from a prompt to its best texts.

    Args:
        params: of the request.
        end_ids: a token of these is a text's last.
        reader: reads the first token.
    """

    def __init__(self, params: SamplingParams, end_ids: frozenset[int], reader: Detokenizer) -> None:
        self.beams = [Beam(reader)]  # on their way, best first; at most `num_beams`
        self.is_done = False
        self._params, self._end_ids = params, end_ids
        self._ended: list[Beam] = []  # the best of those that ended, best first; at most `num_beams`

    @property
    def num_generated(self) -> int:
        """Tokens of every beam on its way."""
        return len(self.beams[0].token_ids)

    def best_texts(self) -> list[tuple[Beam, float]]:
        """The best texts and their scores, best first: as many as are wanted, or as there are."""
        best = self._ended[: self._params.num_return_sequences]
        return [(beam, self._worth(beam)) for beam in best]

    def advance(self, candidates: collections.abc.Sequence[Candidates]) -> None:
        """Go on by a token.

        Args:
            candidates: of each of the beams, likeliest first.
        """
        wanted, going_on = self._params.num_beams, list[Beam]()
        for rank, beam in enumerate(self._continuations(candidates)):
            if beam.finish_reason is None:
                going_on.append(beam)
            elif rank < wanted:
                self._ended.append(beam)
            if len(going_on) == wanted and rank + 1 >= wanted:
                break
        self._ended.sort(key=self._worth, reverse=True)
        del self._ended[wanted:]
        self.beams = going_on[:wanted]
        self.is_done = not self.beams or (len(self._ended) == wanted and not self._can_improve())

    def _can_improve(self) -> bool:
        """Whether the best beam is expected to be worth more in the end than the worst text that ended."""
        params = self._params
        if params.early_stopping is True:
            return False
        is_longest_best = params.early_stopping == "never" and params.length_penalty > 0
        length = params.max_new_tokens if is_longest_best else self.num_generated
        return self._score(self.beams[0].total, length) > self._worth(self._ended[-1])

    def _worth(self, ended: Beam) -> float:
        return self._score(ended.total, len(ended.token_ids))

    def _score(self, total: float, length: int) -> float:
        divisor: float = length**self._params.length_penalty
        return total / divisor

    def _continuations(self, candidates: collections.abc.Sequence[Candidates]) -> Iterator[Beam]:
        """Every beam with every candidate behind it, best first, made as they are looked at."""

        def of_beam(parent: int) -> Iterator[tuple[float, int, int]]:
            total = self.beams[parent].total
            return ((total + score, parent, index) for index, score in enumerate(candidates[parent].scores))

        each = map(of_beam, range(len(self.beams)))
        for total, parent, index in heapq.merge(*each, key=lambda continuation: -continuation[0]):
            yield self._extended(self.beams[parent], total, parent, candidates[parent], index)

    def _extended(self, beam: Beam, total: float, parent: int, among: Candidates, index: int) -> Beam:
        """A beam with a token behind it, read, and whether that ends it."""
        token_id, reader, text, reason = among.token_ids[index], beam.reader.fork(), beam.text, None
        is_end = token_id in self._end_ids
        if not is_end or self._params.include_stop_str_in_output:
            text += reader.push(token_id)
        if is_end or reader.is_stopped:
            reason = FinishReason.STOP
        elif len(beam.token_ids) + 1 >= self._params.max_new_tokens:
            reason = FinishReason.LENGTH
        if reason is not None:
            text += reader.finish()
        logprobs = (*beam.logprobs, *among.logprobs[index : index + 1])
        return Beam(reader, parent, (*beam.token_ids, token_id), total, text, logprobs, reason)
