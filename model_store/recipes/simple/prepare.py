"""Makes from the corpora what `mix.toml` reads and none of their files holds as it is: the text without the
documents that measure it, stories with the thing they are about, and health facts with their topic.

    python -m model_store.recipes.simple.prepare CORPUS CORPUS2 OUT

OUT becomes the folder that `--corpus` names: `first` and `second` in it are links to the corpora, and
`heldout/` holds the documents and records to measure with.
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import zstandard

_SEPARATOR = "\n<|endoftext|>\n"
_ZSTD_WINDOW = 1 << 31  # the corpora were compressed with --long
_HELD_OUT = (  # a text, the valid file made from it and its key; beside those, each n-th document
    ("tinystories", "dialogue.tinystories-request", "reply", 400),
    ("simplewiki", "summarize.simplewiki", "text", 1000),
)
_TAIL = 120  # letters and digits; a document is known by its last ones
_REQUEST = re.compile(r"A: .* about (.*)[.?]")
_SUBJECT = re.compile(
    r"(?:A |An |The )?([^.,;:()]{3,50}?)(?: \([^)]*\))? (?:is|are) (?:a|an|the|one|caused)\b"
)
_QUESTION_WORDS = ("What ", "When ", "Where ", "Who ", "How ", "This ", "There ", "These ", "It ", "If ")
_MAX_ADVICE_WORDS = 70


def main(first: Path, second: Path, out: Path) -> None:
    """Lay out what the recipes of this folder read.

    Args:
        first, second: folders of the two corpora.
        out: made here, with links to both and the parts that are kept for validation.
    """
    for folder in ("pretrain", "heldout"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    (out / "first").symlink_to(first.resolve())
    (out / "second").symlink_to(second.resolve())
    for name, valid, key, every in _HELD_OUT:
        split_text(second / f"pretrain/{name}.txt.zst", out, second / f"{valid}.valid.jsonl.zst", key, every)
    for part, name in (("train", "story.jsonl"), ("valid", "heldout/story.jsonl")):
        source = second / f"dialogue.tinystories-request.{part}.jsonl.zst"
        stories = records(source)
        write(out / name, ({"topic": topic_of(s["history"]), "completion": s["reply"]} for s in stories))
    facts = [fact for text in documents(first / "pretrain/medquad.txt.zst") if (fact := fact_of(text))]
    write(out / "advice.jsonl", (fact for n, fact in enumerate(facts) if n % 20))
    write(out / "heldout/advice.jsonl", facts[::20])


def split_text(source: Path, out: Path, valid: Path, key: str, every: int) -> None:
    """Write a text in two parts: to train on, and held out."""
    name = source.name.split(".")[0]
    tails = {tail(record[key]) for record in records(valid)}
    kept: list[str] = []
    held: list[str] = []
    for n, text in enumerate(documents(source)):
        (held if tail(text) in tails or n % every == 7 else kept).append(text)
    for folder, texts in (("pretrain", kept), ("heldout", held)):
        (out / folder / f"{name}.txt").write_text(_SEPARATOR.join(texts) + "\n", encoding="utf-8")


def tail(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())[-_TAIL:]


def topic_of(history: str) -> str:
    """ "A: Tell me a story about a big cat." -> "a big cat"."""
    match = _REQUEST.fullmatch(history)
    return match[1] if match else history.removeprefix("A: ")


def fact_of(text: str) -> dict[str, str] | None:
    """A text that begins by saying what its subject is, as subject and whole sentences; None for another."""
    paragraph = text.split("\n", 1)[0]
    match = _SUBJECT.match(paragraph)
    if not match or paragraph.startswith(_QUESTION_WORDS):
        return None
    answer = ""
    for sentence in re.split(r"(?<=[.]) (?=[A-Z])", paragraph):
        if len(f"{answer} {sentence}".split()) > _MAX_ADVICE_WORDS:
            break
        answer = f"{answer} {sentence}".strip()
    return {"topic": match[1], "completion": answer} if answer else None


def records(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in read(path).strip().split("\n")]


def documents(path: Path) -> list[str]:
    return [text.strip("\n") for text in read(path).removesuffix(_SEPARATOR).split(_SEPARATOR)]


def read(path: Path) -> str:
    with path.open("rb") as stream:
        return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(stream).read().decode()


def write(path: Path, values: Iterable[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
