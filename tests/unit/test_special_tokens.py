"""Special tokens in prompts: the ids of transformers for whatever mixture of text and marks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from store_models import LINES, write_bert, write_byte_level
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from model_store.steps import finish
from model_store.tokenizer import Tokenizer
from service.engine.sequence import SamplingParams
from service.tasks.fitting import fit_text
from service.tasks.rendering import SLICE, encode
from service.tasks.sampling import Decoding

WORDS = [
    " the king",
    "計算",
    "计算机科学",
    "hello",
    "\n",
    "  ",
    " ",
    "worlds",
    "<|",
    "|>",
    "[",
    "]",
    "é",
    "😀",
    ".",
]


def gpt2(folder: Path) -> list[str]:
    write_byte_level(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    return ["<|endoftext|>"]


def bert(folder: Path) -> list[str]:
    write_bert(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]"]


def sentencepiece(folder: Path) -> list[str]:
    """A unigram vocabulary with metaspace, as converted from SentencePiece, and a BOS before every text."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    marks = ["<s>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=marks, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(LINES, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A"], special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "unk_token": "<unk>"}))
    return marks


def bpe_with_added_tokens(folder: Path) -> list[str]:
    """Tokens that were added after training: special ones that eat the space beside them, and plain ones."""
    write_byte_level(folder)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(["<|startoftext|>", "<|user|>"])
    backend.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True, special=True)])
    backend.add_special_tokens([tokenizers.AddedToken("<sep>", rstrip=True, special=True)])
    backend.add_tokens([tokenizers.AddedToken("kingdom", normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return ["<|endoftext|>", "<|startoftext|>", "<|user|>", "<mask>", "<sep>", "kingdom"]


VOCABULARIES: list[Callable[[Path], list[str]]] = [gpt2, bert, sentencepiece, bpe_with_added_tokens]


def mixtures(marks: list[str], count: int) -> list[str]:
    rng = random.Random(11)
    parts = [*WORDS, *marks, *marks]
    return ["".join(rng.choices(parts, k=rng.randint(0, 12))) for _ in range(count)]


@pytest.mark.parametrize("write", VOCABULARIES)
def test_random_mixtures_have_the_ids_of_transformers(
    tmp_path: Path, write: Callable[[Path], list[str]]
) -> None:
    marks = write(tmp_path)
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    texts = mixtures(marks, 500)
    expected = [theirs.encode(text, add_special_tokens=False) for text in texts]
    assert [finish(encode(ours, text, parses_special=True)) for text in texts] == expected


@pytest.mark.parametrize("write", VOCABULARIES)
def test_a_prompt_has_the_ids_of_transformers_pipeline(
    tmp_path: Path, write: Callable[[Path], list[str]]
) -> None:
    """`TextGenerationPipeline.preprocess` calls the tokenizer with its own defaults."""
    marks = write(tmp_path)
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    decoding = Decoding(SamplingParams(max_new_tokens=1), 1, is_explicit=True)
    for text in filter(None, mixtures(marks, 50)):
        for adds in (True, False):
            work = fit_text(ours, text, decoding, 10**4, "error", "prompt", True, adds)
            wanted = (
                theirs(text)["input_ids"] if adds else theirs(text, add_special_tokens=False)["input_ids"]
            )
            assert list(finish(work).prompt_ids) == (wanted or [ours.eos_id])


@pytest.mark.parametrize("write", VOCABULARIES)
def test_the_frame_is_that_of_transformers(tmp_path: Path, write: Callable[[Path], list[str]]) -> None:
    marks = write(tmp_path)
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    before, after = ours.frame_ids
    for text in mixtures(marks, 50):
        assert [*before, *ours.encode_specials(text), *after] == theirs.encode(text)


@pytest.mark.parametrize("write", [gpt2, bpe_with_added_tokens])
def test_a_long_mixture_in_steps_has_the_ids_of_the_whole(
    tmp_path: Path, write: Callable[[Path], list[str]]
) -> None:
    marks = write(tmp_path)
    ours = Tokenizer.load(tmp_path)
    text = " ".join(mixtures(marks, 2000))
    assert len(text) > 4 * SLICE
    assert finish(encode(ours, text, parses_special=True)) == ours.encode_specials(text)


@pytest.mark.parametrize("write", VOCABULARIES)
def test_data_is_never_parsed(tmp_path: Path, write: Callable[[Path], list[str]]) -> None:
    """Though a SentencePiece vocabulary holds its marks as pieces; what it does not know is still unknown."""
    marks = write(tmp_path)
    ours = Tokenizer.load(tmp_path)
    unknown = {ours.encode_specials(mark)[-1] for mark in ("[UNK]", "<unk>")}
    for text in mixtures(marks, 100):
        found = set(finish(encode(ours, text)))
        assert not {token_id for token_id in found if ours.is_special(token_id)} - unknown


def test_a_text_without_marks_is_read_as_before_where_marks_are_pieces(tmp_path: Path) -> None:
    sentencepiece(tmp_path)
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in mixtures([" sea", "cold\u0378"], 200):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("mark", ["a", "k", "\u0120k", "ing", "\u0120king"])
def test_a_mark_that_texts_are_written_with_is_its_text(tmp_path: Path, mark: str) -> None:
    """As in folders whose `pad_token` is "!": nothing else can write the character."""
    gpt2(tmp_path)
    usual = Tokenizer.load(tmp_path)
    config = {"tokenizer_class": "GPT2Tokenizer", "pad_token": mark}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in mixtures(["a", "k", "ing", " king"], 100):
        assert ours.encode(text) == usual.encode(text)
        assert ours.encode_specials(text) == theirs.encode(text, add_special_tokens=False)
