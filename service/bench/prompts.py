"""What is asked: made-up words, pieces of a file, or lines of JSON; each with a number of new tokens.

Every prompt is different, so that a prefix cache helps only where a shared beginning is asked for. Read
`dialect` next, which makes request bodies of them.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SHAPE = re.compile(r"(\d+)x(\d+)(?:@(\d+(?:\.\d+)?))?")
_WORDS = """
the of and a to in is was he for it with as his on be at by had not are but from or have an they which one
you were all her she there would their we him been has when who will no more if out so up said what its
about than into them can only other time new some could these two may first then do any like my now over
such our man me even most made after also well many must before back through years much where your way
down should because long each just state people those too mr how little good world make very year still
see own work men day get here old life both between being under three never know same last another while
us off might great go come since against right came take used himself few house american use place during
high without again home around small however found part school thought went say general once upon left
every city river water mountain light night morning evening garden window letter paper story music child
""".split()  # noqa: SIM905  (a list of strings would be ten times as long)


class BadPrompts(ValueError):
    """A shape or a prompts file cannot be used; says which and why."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of request.

    Args:
        num_words: words of the prompt.
        max_tokens: new tokens.
        weight: how often, against the other shapes.
    """

    num_words: int
    max_tokens: int
    weight: float = 1.0

    @property
    def name(self) -> str:
        """`64x64`."""
        return f"{self.num_words}x{self.max_tokens}"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to make; `kind` groups requests in the report."""

    kind: str
    prompt: str
    max_tokens: int


def parse_mix(text: str) -> list[Shape]:
    """Read `64x64` or `64x64@9,700x16@1`: words of prompt, new tokens, weight.

    Raises:
        BadPrompts: it is not of that form.
    """
    matches = [_SHAPE.fullmatch(part.strip()) for part in text.split(",")]
    if not all(matches):
        raise BadPrompts("the mix must look like 64x64 or 64x64@9,700x16@1: WORDSxTOKENS@WEIGHT, comma, …")
    shapes = [Shape(int(m[1]), int(m[2]), float(m[3] or 1)) for m in matches if m]
    if any(shape.num_words < 1 or shape.max_tokens < 1 or shape.weight <= 0 for shape in shapes):
        raise BadPrompts("words, tokens and weights of the mix must be above 0")
    return shapes


def generated(shapes: list[Shape], seed: int, num_shared_words: int = 0) -> Iterator[Ask]:
    """Prompts of common English words, without end.

    Args:
        shapes: drawn by weight.
        seed: the same seed gives the same requests.
        num_shared_words: all prompts begin with the same words, so many (within each prompt's length).
    """
    draw = random.Random(seed)
    shared = draw.choices(_WORDS, k=num_shared_words)
    weights = [shape.weight for shape in shapes]
    while True:
        shape = draw.choices(shapes, weights)[0]
        begin = shared[: max(shape.num_words - 1, 0)]
        words = begin + draw.choices(_WORDS, k=shape.num_words - len(begin))
        yield Ask(shape.name, " ".join(words), shape.max_tokens)


def from_text(path: Path, shapes: list[Shape], seed: int) -> Iterator[Ask]:
    """Prompts cut out of a text file at random places, without end.

    Raises:
        BadPrompts: the file has fewer words than a prompt needs.
    """
    words = path.read_text(encoding="utf-8").split()
    longest = max(shape.num_words for shape in shapes)
    if len(words) < longest:
        raise BadPrompts(f"{path} has {len(words)} words, a prompt of the mix needs {longest}")
    draw = random.Random(seed)
    weights = [shape.weight for shape in shapes]
    while True:
        shape = draw.choices(shapes, weights)[0]
        start = draw.randrange(len(words) - shape.num_words + 1)
        yield Ask(shape.name, " ".join(words[start : start + shape.num_words]), shape.max_tokens)


def from_json_lines(path: Path, max_tokens: int) -> Iterator[Ask]:
    """Prompts of a file of JSON objects: `prompt`, maybe `max_tokens` and `kind`; over and over.

    Args:
        path: the file.
        max_tokens: where a line has none.

    Raises:
        BadPrompts: a line is not such an object.
    """
    asks = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            num_tokens = int(item.get("max_tokens", max_tokens))
            asks.append(Ask(str(item.get("kind", "file")), str(item["prompt"]), num_tokens))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadPrompts(f'{path}:{number} must be an object such as {{"prompt": "Once"}}') from error
    if not asks:
        raise BadPrompts(f"{path} holds no prompt")
    while True:
        yield from asks


def choose_prompts(path: Path | None, shapes: list[Shape], seed: int, num_shared_words: int) -> Iterator[Ask]:
    """Prompts from where the command says: generated, a text, or JSON lines (`.jsonl`)."""
    if path is None:
        return generated(shapes, seed, num_shared_words)
    if path.suffix == ".jsonl":
        return from_json_lines(path, shapes[0].max_tokens)
    return from_text(path, shapes, seed)
