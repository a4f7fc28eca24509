"""Constraints: every finished text has its form, whatever the tokenizer, the batch and the drafts."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from test_special_tokens import bpe_with_added_tokens
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from toy_engine import babbling, events_of, make_tokenizer, result_of, running

from model_store.steps import Steps
from model_store.tokenizer import Tokenizer
from model_store.tokenizer_files import LoadedTokenizer
from service.engine.model.logits_processors import SampleRow, process
from service.engine.sequence import SamplingParams, TokenMask
from service.errors import InvalidRequest
from service.tasks import constraints
from service.tasks.calls import Constraint, GenerateCall, Origin, SamplingFields
from service.tasks.constraints import MAX_CHARS, Grammars, Guide
from service.tasks.events import Token
from service.tasks.offload import Offloader

SCHEMAS: list[dict[str, Any]] = [
    {"type": "object"},
    {"type": "boolean"},
    {"enum": ["red", "green", 3, None]},
    {"const": {"a": [1]}},
    {"type": "integer", "minimum": 3, "maximum": 17},
    {"type": "string", "maxLength": 5},
    {"type": "string", "format": "date"},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": False, "minItems": 2},
    {
        "anyOf": [
            {"type": "null"},
            {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]},
        ]
    },
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "v": {"type": "boolean"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["v", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


def word_pieces() -> Tokenizer:
    """A WordPiece of letters, some words and some Chinese: spaces are implied."""
    characters = [chr(code) for code in range(0x21, 0x7F)]
    words = ["[UNK]", "[SEP]", "yes", "no", "计", "算", *characters, *(f"##{c}" for c in characters), "##es"]
    backend = Backend(models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[UNK]", "[SEP]"])
    return Tokenizer(LoadedTokenizer(backend, "wordpiece", (1,)))


def schema_of(schema: object) -> Constraint:
    return Constraint("json_schema", json.dumps(schema))


async def texts_of(tokenizer: Tokenizer, constraint: Constraint, n: int = 4, **sampling: Any) -> list[Any]:
    """Choices of a model that babbles."""
    fields = SamplingFields(**{"max_new_tokens": 60, "seed": 3, **sampling})
    call = GenerateCall(("the king",), n=n, constraint=constraint, sampling=fields)
    async with running(babbling(tokenizer.vocab_size), tokenizer) as (runner, _):
        return list((await result_of(runner.generate(call))).choices)


async def guide_of(tokenizer: Tokenizer, constraint: Constraint) -> Guide:
    offloader = Offloader()
    try:
        return (await Grammars(tokenizer, offloader).compile(constraint, Origin())).guide([5])
    finally:
        offloader.close()


def allowed(found: TokenMask | list[int]) -> list[int]:
    if not isinstance(found, TokenMask):
        return found
    return [int(at) for at in np.flatnonzero(np.unpackbits(found.bits, bitorder="little"))]


@pytest.mark.asyncio
async def test_llguidance_learns_the_vocabulary_before_it_is_asked(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    offloader = Offloader()
    grammars = Grammars(tokenizer, offloader)
    monkeypatch.delattr("llguidance.LLTokenizer")  # it holds the interpreter's lock
    try:
        grammar = await grammars.compile(Constraint("regex", "[ab]"), Origin())
    finally:
        offloader.close()
    assert {tokenizer.decode([token_id]) for token_id in allowed(grammar.guide([5])([]))} == {"a", "b"}


@pytest.mark.asyncio
@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
async def test_a_finished_text_is_valid_against_its_schema(tokenizer: Tokenizer, schema: object) -> None:
    ended = [c for c in await texts_of(tokenizer, schema_of(schema), n=8) if c.finish_reason == "stop"]
    assert ended
    for choice in ended:
        jsonschema.Draft202012Validator(schema).validate(json.loads(choice.text))


@pytest.mark.asyncio
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("pattern", ["[ab]{2,5}", "(yes|no)!?", "é+\\d", r"\d{4}-\d\d"])
async def test_a_finished_text_matches_its_expression(
    tokenizer: Tokenizer, pattern: str, temperature: float
) -> None:
    for choice in await texts_of(tokenizer, Constraint("regex", pattern), temperature=temperature):
        assert re.fullmatch(pattern, choice.text) or choice.finish_reason == "length"


@pytest.mark.asyncio
@pytest.mark.parametrize("make", [make_tokenizer, word_pieces])
async def test_a_choice_is_one_of_the_texts(make: Any) -> None:
    texts = ["yes", "no", 'it "is"']
    for choice in await texts_of(make(), Constraint("choice", json.dumps(texts[:2]))):
        assert choice.text in texts and choice.finish_reason == "stop"
    for choice in await texts_of(make_tokenizer(), Constraint("choice", json.dumps(texts[2:]))):
        assert choice.text == texts[2]


@pytest.mark.asyncio
async def test_what_a_tokenizer_with_implied_spaces_writes_is_what_was_asked_for() -> None:
    found = await texts_of(word_pieces(), Constraint("regex", "[计算]{1,3}[a-c]{2}( yes)?"), n=8)
    assert all(re.fullmatch("[计算]{1,3}[a-c]{2}( yes)?", choice.text) for choice in found)


@pytest.mark.asyncio
async def test_a_text_follows_its_grammar(tokenizer: Tokenizer) -> None:
    lark = 'start: term (("+" | "-") term)*\nterm: /[0-9]/ | "(" start ")"'
    for choice in await texts_of(tokenizer, Constraint("grammar", lark), n=8):
        assert choice.finish_reason == "length" or isinstance(eval(choice.text), int)


@pytest.mark.asyncio
async def test_a_text_that_has_no_room_to_end_says_length(tokenizer: Tokenizer) -> None:
    [choice] = await texts_of(tokenizer, Constraint("regex", "[a-z]{50}"), n=1, max_new_tokens=3)
    assert choice.finish_reason == "length" and re.fullmatch("[a-z]+", choice.text)


@pytest.mark.asyncio
async def test_streamed_is_the_same_text(tokenizer: Tokenizer) -> None:
    constraint = schema_of(SCHEMAS[11])
    call = GenerateCall(("the king",), constraint=constraint, sampling={"seed": 3, "max_new_tokens": 60})
    async with running(babbling(tokenizer.vocab_size), tokenizer) as (runner, _):
        *tokens, _ = await events_of(runner.generate(call))
    joined = "".join(event.text for event in tokens if isinstance(event, Token))
    assert joined == (await texts_of(tokenizer, constraint, n=1))[0].text


@pytest.mark.asyncio
async def test_beside_others_it_is_the_same_text(tokenizer: Tokenizer) -> None:
    calls = [
        GenerateCall(("the king",), constraint=schema_of(schema), sampling={"seed": 9, "max_new_tokens": 40})
        for schema in SCHEMAS
    ]
    async with running(babbling(tokenizer.vocab_size), tokenizer) as (runner, _):
        together = await asyncio.gather(*(result_of(runner.generate(call)) for call in calls))
        alone = [await result_of(runner.generate(call)) for call in calls]
    assert [r.choices[0].text for r in together] == [r.choices[0].text for r in alone]


@pytest.mark.asyncio
async def test_a_tasks_own_stop_strings_do_not_cut_a_constrained_text(tokenizer: Tokenizer) -> None:
    constraint = Constraint("choice", '["a\\nb"]')
    assert (await texts_of(tokenizer, constraint, n=1))[0].text == "a\nb"
    assert (await texts_of(tokenizer, constraint, n=1, stop=("\n",)))[0].text == "a"


@pytest.mark.asyncio
async def test_an_answer_depends_on_the_ids_alone(tokenizer: Tokenizer) -> None:
    """Drafts ask about places that are taken back."""
    guide = await guide_of(tokenizer, Constraint("regex", "abc|abd|xyz"))
    a, b, d, x = (tokenizer.encode(letter)[0] for letter in "abdx")
    first = allowed(guide([]))
    assert a in first and x in first and b not in first and tokenizer.eos_id not in first
    assert allowed(guide([a, b, d])) == [tokenizer.eos_id]
    assert allowed(guide([])) == first
    assert allowed(guide([x, b])) == [tokenizer.eos_id]  # such a draft is never taken
    assert b in allowed(guide([a])) and d not in allowed(guide([a]))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (Constraint("regex", "(ab"), "unclosed group"),
        (schema_of({"type": "nope"}), "nope"),
        (schema_of({"not": {"type": "string"}}), "not"),
        (schema_of({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "Use anyOf where"),
        (Constraint("json_schema", "{"), "no json_schema"),
        (Constraint("grammar", "start: foo"), "unknown name"),
        (Constraint("regex", "a" * (MAX_CHARS + 1)), "at most"),
    ],
)
async def test_what_cannot_be_followed_is_refused_with_the_reason(
    tokenizer: Tokenizer, constraint: Constraint, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refused:
        await texts_of(tokenizer, constraint)
    assert refused.value.param == "constraint"


def chain(count: int) -> str:
    """A grammar of rules that stand in one another."""
    return "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(count)) + f'r{count}: "a"\n'


def references(count: int) -> str:
    """A schema of schemas that stand in one another."""
    ways = {str(i): {"anyOf": [{"$ref": f"#/$defs/{i + 1}"}, {"type": "null"}]} for i in range(count)}
    schema = {"$defs": {**ways, str(count): {"type": "boolean"}}, "$ref": "#/$defs/0"}
    return json.dumps(schema, separators=(",", ":"))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "constraint",
    [Constraint("grammar", chain(4200)), Constraint("json_schema", references(1100))],
    ids=["rules", "references"],
)
async def test_no_depth_ends_the_process(tokenizer: Tokenizer, constraint: Constraint) -> None:
    assert 50_000 < len(constraint.text) < MAX_CHARS
    assert allowed((await guide_of(tokenizer, constraint))([]))


@pytest.mark.asyncio
async def test_a_constraint_that_takes_long_keeps_no_large_text_waiting(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def text() -> Steps[str]:
        yield
        return "read"

    has_begun, may_end = threading.Event(), threading.Event()

    def compile_long(*_: object) -> None:
        has_begun.set()
        may_end.wait()

    monkeypatch.setattr(constraints, "_matcher", compile_long)
    offloader = Offloader()
    compiling = asyncio.create_task(
        Grammars(tokenizer, offloader).compile(Constraint("regex", "a"), Origin())
    )
    try:
        await asyncio.to_thread(has_begun.wait)
        assert await offloader.run(10**6, text(), Origin()) == "read"
        assert not compiling.done()
        compiling.cancel()  # its caller has left: nothing waits for the end of it
        with pytest.raises(asyncio.CancelledError):
            await compiling
        assert await offloader.run(10**6, text(), Origin()) == "read"
    finally:
        may_end.set()
        offloader.close()


@pytest.mark.asyncio
async def test_the_end_is_not_ignored_beside_a_constraint(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="ignore_eos"):
        await texts_of(tokenizer, Constraint("regex", "a"), ignore_eos=True)


@pytest.mark.asyncio
async def test_a_text_that_the_tokenizer_cannot_write_is_an_error_and_no_text() -> None:
    with pytest.raises(InvalidRequest, match="no token"):
        await texts_of(word_pieces(), Constraint("regex", "ü"))


def unigrams(*without: str) -> Tokenizer:
    """A SentencePiece vocabulary of characters and some words; its marks and `<user>` are special."""
    characters = [chr(code) for code in range(0x21, 0x7F)]
    words = ["the", "▁the", "▁a", "sea", "▁sea", '":', '▁"', '{"', "true", "▁true", "é", "\n", "kingdom"]
    pieces = [piece for piece in ["<s>", "</s>", "<unk>", "▁", *characters, *words] if piece not in without]
    scores = [0.0 if at < 3 else -2.0 - len(piece) / 10 for at, piece in enumerate(pieces)]
    backend = Backend(models.Unigram([*zip(pieces, scores, strict=True)], unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens(["<s>", "</s>", "<unk>", "<user>"])
    backend.add_tokens(["kingdoms"])
    return Tokenizer(LoadedTokenizer(backend, "metaspace", (1,)))


def added(folder: Path) -> Tokenizer:
    """A byte-level vocabulary with tokens added after its training, special ones and one that is none."""
    bpe_with_added_tokens(folder)
    return Tokenizer.load(folder)


@pytest.fixture(params=["sentencepiece", "added tokens"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return unigrams() if request.param == "sentencepiece" else added(tmp_path)


@pytest.mark.asyncio
@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
async def test_every_vocabulary_writes_valid_json(other: Tokenizer, schema: object) -> None:
    choices = await texts_of(other, schema_of(schema), n=8, max_new_tokens=120)
    ended = [choice.text for choice in choices if choice.finish_reason == "stop"]
    assert ended
    for text in ended:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.asyncio
async def test_marks_that_are_asked_for_are_written_as_text(other: Tokenizer) -> None:
    """The ids are those of characters: no special token is produced inside."""
    marks = ["<s>", "</s>", "<user>", "<|endoftext|>", "<|startoftext|>", "<mask>", "<sep>"]
    fields = SamplingFields(max_new_tokens=40, seed=3, skip_special_tokens=False)
    for mark in marks:
        form = Constraint("choice", json.dumps([f"a {mark} kingdom"]))
        call = GenerateCall(("the king",), logprobs=0, constraint=form, sampling=fields)
        async with running(babbling(other.vocab_size), other) as (runner, _):
            [choice] = (await result_of(runner.generate(call))).choices
        assert choice.finish_reason == "stop" and choice.logprobs is not None
        *inner, end = [score.token_id for score in choice.logprobs]
        assert end in other.eos_token_ids and not any(map(other.is_special, inner)), mark
        assert other.decode(inner).strip() == f"a {mark} kingdom"


@pytest.mark.asyncio
async def test_every_vocabulary_begins_with_a_space_or_without_as_it_is_asked(other: Tokenizer) -> None:
    for text in ("the sea", " the sea", "  the  sea", "kingdoms", " kingdoms a"):
        [choice] = await texts_of(other, Constraint("choice", json.dumps([text])), n=1)
        assert (choice.text, choice.finish_reason) == (text, "stop")


@pytest.mark.asyncio
async def test_a_stop_string_ends_a_form_in_every_vocabulary(other: Tokenizer) -> None:
    constraint = Constraint("regex", "[a-c]{3} (the|sea) [a-c]{3}")
    for choice in await texts_of(other, constraint, stop=(" the", " sea"), n=8):
        assert re.fullmatch("[a-c]{3}", choice.text) and choice.finish_reason == "stop"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "constraint",
    [schema_of(SCHEMAS[11]), Constraint("regex", "ab~"), Constraint("choice", '["~"]')],
    ids=lambda c: c.kind,
)
async def test_a_form_that_a_vocabulary_cannot_write_is_an_error_however_far_it_comes(
    constraint: Constraint,
) -> None:
    with pytest.raises(InvalidRequest, match="no token"):
        await texts_of(unigrams("{", '{"', "~"), constraint)


@pytest.mark.asyncio
@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
async def test_what_is_forced_is_what_llguidance_s_mask_alone_leaves(
    tokenizer: Tokenizer, schema: object
) -> None:
    """At every place of ten drawn texts."""
    guide, drawn = await guide_of(tokenizer, schema_of(schema)), random.Random(1)
    for _ in range(10):
        ids: list[int] = []
        masks = guide._start.deep_copy()
        while len(ids) < 40 and not masks.is_stopped():
            bits = np.frombuffer(masks.compute_bitmask(), np.uint8)
            of_mask = allowed(TokenMask(bits))
            assert allowed(guide(ids)) == of_mask
            assert (guide.forced(ids)[:1] or of_mask) == of_mask
            ids.append(drawn.choice(of_mask))
            masks.try_consume_tokens(ids[-1:])


@pytest.mark.asyncio
async def test_all_of_a_key_is_forced_behind_its_first_letter(tokenizer: Tokenizer) -> None:
    schema = schema_of({"type": "object", "properties": {"size": {"type": "boolean"}}, "required": ["size"]})
    guide = await guide_of(tokenizer, schema)
    begun = tokenizer.encode('{"s')
    text = tokenizer.decode([*begun, *guide.forced(begun)])
    assert text.startswith('{"size') and not guide.forced(tokenizer.encode('{"size":'))


@pytest.mark.asyncio
async def test_a_draft_into_a_dead_end_that_is_not_taken_does_no_harm() -> None:
    tokenizer = unigrams("~")
    guide = await guide_of(tokenizer, Constraint("regex", "a~|bc"))
    a, b, c = (tokenizer.encode(f"x{letter}")[-1] for letter in "abc")
    assert allowed(guide([a])) == [tokenizer.eos_id]
    assert allowed(guide([b])) == [c] and allowed(guide([b, c])) == [tokenizer.eos_id]
    guide.check(3)
    guide([a])
    with pytest.raises(InvalidRequest, match="no token"):
        guide.check(2)


def masked(bits: Sequence[int], logits: list[float]) -> list[float]:
    mask = TokenMask(np.packbits(np.array(bits, np.bool_), bitorder="little"))
    row = torch.tensor([logits])
    process(row, [SampleRow(SamplingParams(allowed_next=lambda _: mask), [1], [])], [0])
    return [float(value) for value in row[0]]


def test_a_mask_leaves_the_logits_of_its_tokens() -> None:
    assert masked([1, 0, 1], [1.0, 2.0, 3.0]) == [1.0, -torch.inf, 3.0]


def test_a_mask_wins_over_what_forbids_all_of_its_tokens() -> None:
    assert masked([0, 1, 0], [1.0, -torch.inf, 3.0]) == [-torch.inf, 0.0, -torch.inf]
