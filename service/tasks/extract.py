"""Which tokens may come next if a summary has to be whole sentences of the text, each once and in order.

For a task with `extractive`: the model chooses sentences and when to stop, and can neither misspell nor
invent. The end of text is allowed behind each sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

from model_store.tokenizer import Tokenizer

_State = tuple[int, int]  # which sentence, how many of its tokens are there


class SentenceAutomaton:
    """Allows sentences of a list, in the order of the list.

    Args:
        sentences: any texts; empty ones never come.
        tokenizer: encodes each as an answer begins, behind a space.
    """

    def __init__(self, sentences: Sequence[str], tokenizer: Tokenizer) -> None:
        encoded = (tokenizer.encode(" " + text.strip()) for text in sentences if text.strip())
        self._sentences = [ids for ids in encoded if ids]
        self._end = tokenizer.eos_id
        self._states: dict[tuple[int, ...], frozenset[_State]] = {(): frozenset({(-1, 0)})}

    def __call__(self, output_ids: Sequence[int]) -> Sequence[int]:
        """Ids allowed after `output_ids`, never none; the end of text behind a whole sentence."""
        states = self._reached(tuple(output_ids))
        allowed = {token_id for state in states for token_id, _ in self._steps(state)}
        if output_ids and any(self._is_whole(state) for state in states):
            allowed.add(self._end)
        return sorted(allowed) or [self._end]

    def _reached(self, output_ids: tuple[int, ...]) -> frozenset[_State]:
        reached = self._states.get(output_ids)
        if reached is None:
            states = {
                state
                for one in self._reached(output_ids[:-1])
                for token_id, state in self._steps(one)
                if token_id == output_ids[-1]
            }
            # Of several whole sentences the first is enough: whatever may follow the others may follow it.
            whole = {state for state in states if self._is_whole(state)}
            reached = frozenset(states - whole | ({min(whole)} if whole else set()))
            self._states[output_ids] = reached
        return reached

    def _is_whole(self, state: _State) -> bool:
        sentence, count = state
        return sentence < 0 or count == len(self._sentences[sentence])

    def _steps(self, state: _State) -> list[tuple[int, _State]]:
        """(token, the state it leads to): on in the sentence, or into a later one."""
        sentence, count = state
        if not self._is_whole(state):
            return [(self._sentences[sentence][count], (sentence, count + 1))]
        return [(self._sentences[j][0], (j, 1)) for j in range(sentence + 1, len(self._sentences))]
