"""The tokenizer: round trips, special tokens as text, and the bytes of each token."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from store_models import LINES, write_bert, write_byte_level, write_merges
from tokenizers import decoders, models, pre_tokenizers, processors

from model_store import tokenizer_files
from model_store.byte_alphabet import bytes_by_character
from model_store.default_tasks import default_tasks
from model_store.errors import InvalidText, StoreError, TokenizerError
from model_store.tokenizer import Tokenizer, copy_tokenizer

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)
SOME = settings(deadline=None, derandomize=True, max_examples=150)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_byte_level(tmp_path_factory.mktemp("byte_level")))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_bert(tmp_path_factory.mktemp("bert")))


@given(text=TEXTS)
@SOME
def test_every_text_comes_back_from_byte_level_ids(byte_level: Tokenizer, text: str) -> None:
    assert byte_level.decode(byte_level.encode(text)) == text


@given(ids=st.lists(st.integers(0, 319), max_size=40))
@SOME
def test_pieces_joined_are_what_decode_gives(byte_level: Tokenizer, ids: list[int]) -> None:
    pieces = [byte_level.piece(before, i) for before, i in zip([None, *ids], ids, strict=False)]
    joined = b"".join(pieces).decode("utf-8", "replace")
    assert joined.startswith(byte_level.decode(ids))


@given(text=TEXTS)
@SOME
def test_offsets_tile_the_text_in_code_points(byte_level: Tokenizer, text: str) -> None:
    _, offsets = byte_level.encode_with_offsets(text)
    covered = {place for start, end in offsets for place in range(start, end)}
    assert covered == set(range(len(text)))


@given(text=TEXTS)
@SOME
def test_offsets_come_with_the_ids_of_encode(byte_level: Tokenizer, text: str) -> None:
    assert byte_level.encode_with_offsets(text)[0] == byte_level.encode(text)


def test_an_end_of_text_that_a_user_types_is_text(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("a<|endoftext|>b")
    assert byte_level.eos_id not in ids and byte_level.decode(ids) == "a<|endoftext|>b"


def test_an_end_of_text_in_a_template_is_a_token(byte_level: Tokenizer) -> None:
    assert byte_level.encode_specials("a<|endoftext|>b")[1] == byte_level.eos_id


def test_a_special_token_adds_no_text(byte_level: Tokenizer) -> None:
    assert byte_level.piece(None, byte_level.eos_id) == b"" and byte_level.is_special(byte_level.eos_id)


def test_an_id_out_of_the_vocabulary_adds_no_text(byte_level: Tokenizer) -> None:
    assert byte_level.piece(None, byte_level.vocab_size + 5) == b""


@pytest.mark.parametrize("text", ["\ud800", "ab\udfffc"])
def test_a_lone_surrogate_gets_a_clear_error(byte_level: Tokenizer, text: str) -> None:
    with pytest.raises(InvalidText, match=r"lone surrogate at character [02]"):
        byte_level.encode(text)


def test_half_a_character_at_the_end_is_left_out(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("😀")
    assert len(ids) == 4 and byte_level.decode(ids[:-1]) == ""


def test_invalid_bytes_within_become_the_replacement_character(byte_level: Tokenizer) -> None:
    half, letter = byte_level.encode("😀")[0], byte_level.encode("a")[0]
    assert byte_level.decode([half, letter]) == "\ufffda"


def test_the_byte_table_has_every_byte_once() -> None:
    assert sorted(bytes_by_character().values()) == list(range(256))


@pytest.mark.parametrize("text", [*LINES[:3], "Zürich\t\n  😀"])
def test_vocab_and_merges_give_the_ids_of_tokenizer_json(
    byte_level: Tokenizer, tmp_path: Path, text: str
) -> None:
    assert Tokenizer.load(write_merges(tmp_path)).encode(text) == byte_level.encode(text)


def test_vocab_and_merges_know_the_end_of_text(byte_level: Tokenizer, tmp_path: Path) -> None:
    loaded = Tokenizer.load(write_merges(tmp_path))
    assert loaded.eos_token_ids == (0,) and 0 not in loaded.encode("<|endoftext|>")


def test_chinese_text_gets_no_spaces(bert: Tokenizer) -> None:
    assert bert.decode(bert.encode("计算机\uff0c科学")) == "计算机\uff0c科学"


def test_word_pieces_are_joined_and_words_parted(bert: Tokenizer) -> None:
    assert bert.decode(bert.encode("Hello  worlds")) == "hello worlds"


def test_no_space_stands_between_a_word_and_chinese(bert: Tokenizer) -> None:
    assert bert.decode(bert.encode("hello 计 hello")) == "hello计hello"


def test_bert_encoding_adds_no_marks(bert: Tokenizer) -> None:
    assert not any(bert.is_special(i) for i in bert.encode("计算机"))


def test_the_bert_separator_ends_a_text(bert: Tokenizer) -> None:
    assert bert.eos_token_ids == (3,)


def test_a_bert_mark_that_a_user_types_is_text(bert: Tokenizer) -> None:
    assert not {2, 3} & set(bert.encode("[CLS] 计 [SEP]"))


def test_an_end_token_of_another_vocabulary_is_ignored(tmp_path: Path) -> None:
    (write_bert(tmp_path) / "config.json").write_text('{"eos_token_id": 50256}')
    assert Tokenizer.load(tmp_path).eos_token_ids == (3,)


def test_further_end_tokens_of_the_generation_config_count(tmp_path: Path) -> None:
    (write_byte_level(tmp_path) / "generation_config.json").write_text('{"eos_token_id": [0, 5]}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    assert Tokenizer.load(tmp_path).eos_token_ids == (0, 5)


def test_sentencepiece_marks_are_spaces_and_bytes(tmp_path: Path) -> None:
    names = ["<unk>", "</s>", "\u2581the", "\u2581sea", "<0xE8>", "<0xAE>", "<0xA1>", "s"]
    backend = tokenizers.Tokenizer(models.Unigram([(name, -1.0) for name in names], 0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    assert Tokenizer.load(tmp_path).decode([2, 3, 7, 4, 5, 6, 1]) == "the seas计"


def test_a_kind_that_cannot_be_streamed_is_refused_by_name(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="WordLevel with decoder none is not supported"):
        Tokenizer.load(tmp_path)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="cannot be read"):
        Tokenizer.load(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).decode(Tokenizer.load(tmp_path).encode("q" * 30)) == "q" * 30


def test_loading_imports_no_transformers(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from model_store.tokenizer import Tokenizer; "
        "Tokenizer.load(Path(sys.argv[1])); sys.exit('transformers' in sys.modules)"
    )
    for write in (write_byte_level, write_merges, write_bert):
        folder = write(tmp_path / write.__name__)
        assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0


def test_a_byte_level_file_without_a_decoder_is_read(byte_level: Tokenizer, tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.decoder = None
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).decode(byte_level.encode("the sea 😀")) == "the sea 😀"


def test_a_token_without_an_embedding_is_refused(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    num_tokens = Tokenizer.load(tmp_path).vocab_size
    with pytest.raises(TokenizerError, match="resize_token_embeddings"):
        Tokenizer.load(tmp_path, num_tokens - 1)


def test_a_padding_mark_without_an_embedding_is_left_out(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    num_embeddings = backend.get_vocab_size()
    backend.add_special_tokens(["[PAD]"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path, num_embeddings)
    assert tokenizer.vocab_size == num_embeddings
    assert tokenizer.encode_specials("a[PAD]b") == tokenizer.encode("a[PAD]b")
    assert max(tokenizer.encode_specials("a[PAD]b")) < num_embeddings
    assert num_embeddings in Tokenizer.load(tmp_path).encode_specials("a[PAD]b")


def with_bos(folder: Path) -> Path:
    """A byte-level BPE that puts its token 5 before every text."""
    write_byte_level(folder)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    mark = backend.id_to_token(5)
    backend.post_processor = processors.TemplateProcessing(single=[mark, "$A"], special_tokens=[(mark, 5)])
    backend.save(str(folder / "tokenizer.json"))
    return folder


def test_what_a_tokenizer_puts_before_a_text_begins_every_prompt(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(with_bos(tmp_path))
    (own,) = tokenizer.encode("x")
    assert tokenizer.bos_ids == (5,)
    assert default_tasks()["generate"].encode(tokenizer, {"prompt": "x"}) == [5, own]


def test_an_end_of_text_may_be_an_embedding_without_a_token(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 325}')
    assert Tokenizer.load(tmp_path, 330).eos_token_ids == (0, 325)
    assert Tokenizer.load(tmp_path, 325).eos_token_ids == (0,)


def test_a_token_that_cannot_have_its_id_is_named(tmp_path: Path) -> None:
    (write_byte_level(tmp_path) / "added_tokens.json").write_text('{"<|user|>": 9000}')
    with pytest.raises(TokenizerError, match=r"'<\|user\|>' cannot have the id 9000"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("tokenizer_config", '{"added_tokens_decoder": [1]}', "added_tokens_decoder must"),
        (
            "tokenizer_config",
            '{"added_tokens_decoder": {"%s": "a"}}' % ("5" * 5000),
            "added_tokens_decoder must",
        ),
        ("tokenizer_config", '{"eos_token": 5}', "a special token must"),
        ("tokenizer_config", r'{"eos_token": "\ud800"}', "surrogates not allowed"),
        ("tokenizer_config", '{"extra_special_tokens": 5}', "extra_special_tokens must be a list"),
        ("added_tokens", '{"<|user|>": "5"}', "must hold a whole number"),
        ("special_tokens_map", "[]", "must hold a JSON object"),
    ],
)
def test_a_wrong_token_in_the_configuration_is_one_line(
    tmp_path: Path, name: str, values: str, message: str
) -> None:
    (write_byte_level(tmp_path) / f"{name}.json").write_text(values)
    with pytest.raises(StoreError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("write", [write_byte_level, write_merges, write_bert])
@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda path: path.symlink_to("blob"), "is a link to a file that is missing"),
        (lambda path: path.symlink_to(path.name), "Too many levels"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
        (lambda path: path.write_text(""), "is empty"),
        (os.mkfifo, "is a FIFO"),
        (Path.mkdir, "is a folder"),
    ],
)
def test_a_file_that_is_there_and_cannot_be_read_is_never_taken_for_missing(
    tmp_path: Path, write: Callable[[Path], Path], damage: Callable[[Path], None], cause: str
) -> None:
    folder = write(tmp_path / "m")
    own = [path.name for path in folder.iterdir()]
    others = (
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "generation_config.json",
    )
    for name in (*own, *others):
        path = folder / name
        before = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        damage(path)
        with pytest.raises(StoreError, match=cause) as caught:
            Tokenizer.load(folder)
        assert str(path) in str(caught.value)
        path.rmdir() if path.is_dir() else path.unlink()
        if before is not None:
            path.write_bytes(before)


@pytest.mark.parametrize(
    ("key", "value", "cause"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "!!!"}, "Invalid byte"),
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "non-zero"),
        ("added_tokens", [{"id": 5}], "missing field"),
    ],
)
def test_what_the_library_does_not_survive_is_one_line(
    tmp_path: Path, key: str, value: object, cause: str
) -> None:
    path = write_byte_level(tmp_path) / "tokenizer.json"
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(TokenizerError, match=cause) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and str(caught.value).isprintable()


def test_an_empty_vocabulary_is_none(tmp_path: Path) -> None:
    path = write_byte_level(tmp_path) / "tokenizer.json"
    state = json.loads(path.read_text())
    state["model"] |= {"vocab": {}, "merges": []}
    path.write_text(json.dumps(state))
    with pytest.raises(TokenizerError, match="its vocabulary is empty"):
        Tokenizer.load(tmp_path)


def test_a_text_that_a_vocabulary_cannot_write_is_refused(tmp_path: Path) -> None:
    """Of SentencePiece without a token for what is unknown."""
    backend = tokenizers.Tokenizer(models.Unigram([("a", -1.0), ("</s>", 0.0)], None))
    backend.decoder = decoders.Metaspace()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("aa") == [0, 0]
    with pytest.raises(InvalidText, match="vocabulary cannot write the text"):
        tokenizer.encode("ab")


def test_a_beginning_of_text_needs_an_embedding(tmp_path: Path) -> None:
    with pytest.raises(
        TokenizerError, match="puts token 5 before every text; the model has embeddings for 5"
    ):
        Tokenizer.load(with_bos(tmp_path), 5)


def test_a_tokenizer_is_copied_with_all_its_files(tmp_path: Path) -> None:
    source, target = write_merges(tmp_path / "a"), tmp_path / "b"
    target.mkdir()
    (source / "added_tokens.json").write_text(json.dumps({"<|user|>": Tokenizer.load(source).vocab_size}))
    tokenizer = copy_tokenizer(source, target, 330)
    assert {path.name for path in target.iterdir()} == {"vocab.json", "merges.txt", "added_tokens.json"}
    assert Tokenizer.load(target, 330).encode_specials("<|user|>x") == tokenizer.encode_specials("<|user|>x")


def test_a_converted_tokenizer_is_written_as_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    backend = tokenizers.Tokenizer.from_file(str(with_bos(source) / "tokenizer.json"))
    (source / "tokenizer.json").rename(source / "spiece.model")
    target.mkdir()
    monkeypatch.setattr(tokenizer_files, "_from_transformers", lambda folder: backend)
    copy_tokenizer(source, target, 330)
    assert {path.name for path in target.iterdir()} == {"spiece.model", "tokenizer.json"}
    assert Tokenizer.load(target, 330).bos_ids == (5,)


def test_a_copy_that_is_another_tokenizer_is_refused(tmp_path: Path) -> None:
    target = write_byte_level(tmp_path / "b")
    (target / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    with pytest.raises(TokenizerError, match="is not the one in"):
        copy_tokenizer(write_byte_level(tmp_path / "a"), target, 330)
