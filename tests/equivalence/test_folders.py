"""What transformers makes of a folder is what is served: ids, logits and greedy texts, in every shape that
checkpoints come in.

Each shape is a folder that the test makes itself, from a tiny model and a tiny tokenizer.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tiny import draw_model
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPT2LMHeadModel, GPT2Tokenizer, PreTrainedTokenizerFast

from model_store.checkpoint import read_checkpoint
from model_store.tokenizer import Tokenizer
from model_store.weights import load_gpt2
from service.engine.config import EngineConfig
from service.engine.loader import build_engine
from service.engine.sequence import Job, SamplingParams, Sequence, SequenceRequest

LINES = [
    "the king went to the sea, and the sea was cold.",
    "Once upon a time there was a small house, wasn't it? It's far!",
    "Zürich, naïve café … 3.14",
    "天气很好",
] * 20
TEXTS = ("Once upon a time", " the king  went", "the sea, cold. It's", "naïve café …", "")
PLAIN = "PreTrainedTokenizerFast"
Make = Callable[[Path], None]


def byte_level(specials: tuple[str, ...] = ("<|endoftext|>",)) -> Any:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=340, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
        ),
    )
    return backend


def word_piece() -> Any:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=marks, show_progress=False)
    backend.train_from_iterator([line for line in LINES if line.isascii()], trainer)
    return backend


def metaspace(model: Any, trainer: Any) -> Any:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.train_from_iterator(LINES, trainer)
    return backend


def unigram() -> Any:
    marks = ["</s>", "<unk>", "<pad>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=marks, unk_token="<unk>", show_progress=False
    )
    return metaspace(models.Unigram(), trainer)


def write(folder: Path, backend: Any, size: int = 0, seed: int = 1, **config: Any) -> None:
    """A model of `size` tokens (0: as many as the tokenizer has) with tokenizer.json."""
    backend.save(str(folder / "tokenizer.json"))
    draw_model(seed, vocab_size=size or backend.get_vocab_size(), **config).save_pretrained(folder)


def write_json(folder: Path, name: str, **values: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(values))


def change_json(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / f"{name}.json").read_text())
    change(values)
    write_json(folder, name, **values)


def change_weights(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


# --- shapes: what a folder may hold


def plain(folder: Path) -> None:
    write(folder, byte_level())


def with_config(folder: Path) -> None:
    write(folder, byte_level())
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    ).save_pretrained(folder)


def merges(folder: Path) -> None:
    write(folder, byte_level())
    state = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    write_json(folder, "vocab", **state["vocab"])
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")


def merges_with_prefix_space(folder: Path) -> None:
    merges(folder)
    write_json(folder, "tokenizer_config", tokenizer_class="GPT2Tokenizer", add_prefix_space=True)


def merges_with_bos(folder: Path) -> None:
    merges(folder)
    write_json(folder, "tokenizer_config", tokenizer_class="GPT2Tokenizer", add_bos_token=True)


def prefix_space_in_the_file_only(folder: Path) -> None:
    backend = byte_level()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    write(folder, backend)


def prefix_space_of_a_plain_class(folder: Path) -> None:
    prefix_space_in_the_file_only(folder)
    write_json(folder, "tokenizer_config", tokenizer_class=PLAIN, eos_token="<|endoftext|>")


def bos_template(folder: Path) -> None:
    backend = byte_level(("<|endoftext|>", "<s>"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    write(folder, backend, bos_token_id=1)
    write_json(
        folder,
        "tokenizer_config",
        tokenizer_class=PLAIN,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        add_bos_token=True,
    )


def bos_of_the_config_beside_a_file(folder: Path) -> None:
    """transformers takes what tokenizer.json says, and this says nothing."""
    plain(folder)
    marks = dict.fromkeys(("bos_token", "eos_token"), "<|endoftext|>")
    write_json(folder, "tokenizer_config", tokenizer_class="GPT2Tokenizer", add_bos_token=True, **marks)


ADDED = ("<|end|>", "<|user|>", "<|bot|>")


def old_added_tokens(folder: Path) -> None:
    """As transformers 4 saved a slow tokenizer."""
    merges(folder)
    first = read_checkpoint(folder).architecture.vocab_size
    write_json(folder, "added_tokens", **{text: first + index for index, text in enumerate(ADDED)})
    extra = {"additional_special_tokens": list(ADDED[1:])}
    write_json(folder, "special_tokens_map", eos_token="<|end|>", bos_token="<|endoftext|>", **extra)
    write_json(folder, "tokenizer_config", tokenizer_class="GPT2Tokenizer")
    draw_model(2, vocab_size=first + 3, eos_token_id=first).save_pretrained(folder)


def stale_tokenizer_json(folder: Path) -> None:
    """Tokens that only tokenizer_config.json knows."""
    backend = byte_level()
    first = backend.get_vocab_size()
    write(folder, backend, first + 3, eos_token_id=first)
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    tokens = {str(first + i): {"content": text, "special": True, **flags} for i, text in enumerate(ADDED)}
    write_json(
        folder,
        "tokenizer_config",
        tokenizer_class=PLAIN,
        added_tokens_decoder=tokens,
        eos_token="<|end|>",
    )


def extra_special_tokens(folder: Path) -> None:
    backend = byte_level()
    write(folder, backend, backend.get_vocab_size() + 2)
    write_json(
        folder,
        "tokenizer_config",
        tokenizer_class="GPT2Tokenizer",
        extra_special_tokens=list(ADDED[1:]),
        eos_token="<|endoftext|>",
    )


def padding(folder: Path) -> None:
    """[PAD] was added, the embeddings were resized."""
    backend = byte_level()
    tokenizer = GPT2Tokenizer(vocab=backend.get_vocab(), merges=merges_of(backend), pad_token="[PAD]")
    tokenizer.save_pretrained(folder)
    draw_model(1, vocab_size=len(tokenizer), pad_token_id=len(tokenizer) - 1).save_pretrained(folder)


def merges_of(backend: Any) -> list[tuple[str, str]]:
    pairs = json.loads(backend.to_str())["model"]["merges"]
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in pairs]


def padding_without_embedding(folder: Path) -> None:
    padding(folder)
    size = Tokenizer.load(folder).vocab_size - 1
    draw_model(1, vocab_size=size).save_pretrained(folder)


def a_spare_token_ends_texts(folder: Path) -> None:
    """The model has more embeddings than the tokenizer tokens, and one of these ends a text."""
    backend = byte_level()
    write(folder, backend, backend.get_vocab_size() + 8, eos_token_id=backend.get_vocab_size() + 5)


def an_added_word(folder: Path) -> None:
    """A token that is no mark: text becomes it."""
    backend = byte_level()
    backend.add_tokens([AddedToken("upon a", normalized=True)])
    write(folder, backend)


def bert(folder: Path) -> None:
    write(folder, word_piece(), eos_token_id=3)
    write_json(folder, "tokenizer_config", tokenizer_class="BertTokenizer", do_lower_case=True)


def bert_cased(folder: Path) -> None:
    write(folder, word_piece(), eos_token_id=3)
    write_json(folder, "tokenizer_config", tokenizer_class="BertTokenizer", do_lower_case=False)


def bert_vocab(folder: Path) -> None:
    bert(folder)
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__)))


def sentence_piece(folder: Path) -> None:
    write(folder, unigram(), eos_token_id=0)
    write_json(folder, "tokenizer_config", tokenizer_class=PLAIN, eos_token="</s>")


def sentence_piece_bpe(folder: Path) -> None:
    marks = ["</s>", "<unk>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=marks, show_progress=False)
    write(folder, metaspace(models.BPE(unk_token="<unk>"), trainer), eos_token_id=0)
    write_json(folder, "tokenizer_config", tokenizer_class=PLAIN, eos_token="</s>")


def sentence_piece_without_first_space(folder: Path) -> None:
    backend = unigram()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    write(folder, backend, eos_token_id=0)
    write_json(folder, "tokenizer_config", tokenizer_class=PLAIN, eos_token="</s>")


def byte_fallback(folder: Path) -> None:
    """As Llama's."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    marks = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=marks, show_progress=False)
    backend.train_from_iterator(LINES, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    write(folder, backend, eos_token_id=2, bos_token_id=1)
    write_json(folder, "tokenizer_config", tokenizer_class=PLAIN, bos_token="<s>", eos_token="</s>")


def another_split(folder: Path) -> None:
    """A pre-tokenizer in the file that GPT-2's class does not take."""
    backend = byte_level()
    own = tokenizers.Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(own, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    write(folder, backend)
    write_json(folder, "tokenizer_config", tokenizer_class="GPT2TokenizerFast", eos_token="<|endoftext|>")


def another_split_of_a_plain_class(folder: Path) -> None:
    another_split(folder)
    write_json(folder, "tokenizer_config", tokenizer_class=PLAIN, eos_token="<|endoftext|>")


def flags_of_added_tokens(folder: Path) -> None:
    backend = byte_level()
    first = backend.get_vocab_size()
    write(folder, backend, first + 3)
    tokens = {
        str(first + i): {
            "content": text,
            "normalized": False,
            "special": flag != "single_word",
            **{each: each == flag for each in ("lstrip", "rstrip", "single_word")},
        }
        for i, (text, flag) in enumerate(zip(ADDED, ("lstrip", "rstrip", "single_word"), strict=True))
    }
    write_json(folder, "tokenizer_config", tokenizer_class="GPT2Tokenizer", added_tokens_decoder=tokens)


def shortened_by_the_file(folder: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=12, pad_id=5)
    write(folder, backend)
    write_json(
        folder, "tokenizer_config", tokenizer_class=PLAIN, model_max_length=6, eos_token="<|endoftext|>"
    )


def odd_widths(folder: Path) -> None:
    write(folder, byte_level(), n_embd=33, n_head=3, n_inner=50, n_layer=1, n_positions=41)


def other_scales(folder: Path) -> None:
    write(
        folder,
        byte_level(),
        scale_attn_weights=False,
        scale_attn_by_inverse_layer_idx=True,
        reorder_and_upcast_attn=True,
        activation_function="relu2",
        layer_norm_epsilon=0.1,
    )


def masks(folder: Path) -> None:
    """The buffers that old checkpoints carry along."""
    plain(folder)
    names = [f"transformer.h.{layer}.attn" for layer in range(2)]
    ones = {f"{name}.bias": torch.ones(1, 1, 96, 96, dtype=torch.uint8) for name in names}
    change_weights(folder, lambda s: {**s, **ones, f"{names[0]}.masked_bias": torch.tensor(-1e4)})


def sharded(folder: Path) -> None:
    plain(folder)
    draw_model(1, vocab_size=read_checkpoint(folder).architecture.vocab_size).save_pretrained(
        folder, max_shard_size="30KB"
    )
    (folder / "model.safetensors").unlink()


def stale_index(folder: Path) -> None:
    sharded(folder)
    draw_model(3, vocab_size=read_checkpoint(folder).architecture.vocab_size).save_pretrained(folder)
    assert (folder / "model.safetensors").exists()
    write_json(
        folder,
        "model.safetensors.index",
        metadata={},
        weight_map={"transformer.wte.weight": "gone.safetensors"},
    )


def untied(folder: Path) -> None:
    write(folder, byte_level(), tie_word_embeddings=False)


def untied_beside_the_default(folder: Path) -> None:
    untied(folder)
    change_json(folder, "config", lambda config: config.pop("tie_word_embeddings"))


def an_equal_head(folder: Path) -> None:
    plain(folder)
    change_weights(folder, lambda s: {**s, "lm_head.weight": s["transformer.wte.weight"].clone()})


def the_head_alone(folder: Path) -> None:
    plain(folder)
    change_weights(folder, lambda s: {"lm_head.weight": s.pop("transformer.wte.weight"), **s})


def no_prefix(folder: Path) -> None:
    plain(folder)
    change_weights(folder, lambda s: {name.removeprefix("transformer."): t for name, t in s.items()})


def a_value_head(folder: Path) -> None:
    plain(folder)
    change_weights(folder, lambda s: {**s, "v_head.summary.weight": torch.ones(1, 32)})


def fewer_layers(folder: Path) -> None:
    plain(folder)
    change_json(folder, "config", lambda config: config.update(n_layer=1))


def general_names(folder: Path) -> None:
    plain(folder)
    names = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
    change_json(folder, "config", lambda c: [c.update({new: c.pop(old)}) for old, new in names.items()])


def python_gelu(folder: Path) -> None:
    write(folder, byte_level(), activation_function="gelu_python")


def half_precision(folder: Path) -> None:
    plain(folder)
    change_weights(folder, lambda s: {name: tensor.bfloat16() for name, tensor in s.items()})


def double_precision(folder: Path) -> None:
    plain(folder)
    change_weights(folder, lambda s: {name: tensor.double() for name, tensor in s.items()})


def several_precisions(folder: Path) -> None:
    plain(folder)
    kinds = (torch.float16, torch.bfloat16, torch.float32)
    change_weights(folder, lambda s: {name: s[name].to(kinds[i % 3]) for i, name in enumerate(s)})


SHAPES: tuple[Make, ...] = (
    plain, with_config, merges, merges_with_prefix_space, merges_with_bos, bos_of_the_config_beside_a_file,
    prefix_space_in_the_file_only,
    prefix_space_of_a_plain_class, bos_template, old_added_tokens, stale_tokenizer_json, extra_special_tokens,
    padding, padding_without_embedding, a_spare_token_ends_texts, an_added_word, bert, bert_cased, bert_vocab,
    sentence_piece, sentence_piece_bpe, sharded, stale_index, untied, untied_beside_the_default,
    an_equal_head, the_head_alone, no_prefix, a_value_head, fewer_layers, general_names, python_gelu,
    half_precision, double_precision, several_precisions, sentence_piece_without_first_space, byte_fallback,
    another_split, another_split_of_a_plain_class, flags_of_added_tokens, shortened_by_the_file, odd_widths,
    other_scales, masks,
)  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES, ids=lambda make: make.__name__)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("shape")
    request.param(made)
    return made


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder, read_checkpoint(folder).architecture.vocab_size)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()


def expected_ids(theirs: Any, text: str) -> list[int]:
    """Without the frame that BERT's puts around a text, which would end it."""
    is_bert = type(theirs).__name__.startswith("Bert")
    ids: list[int] = theirs(text, add_special_tokens=not is_bert)["input_ids"]
    return ids


@pytest.mark.parametrize("text", [*TEXTS, *(f"{mark}Once upon a time{mark}" for mark in ADDED)])
def test_the_ids_are_theirs(theirs: Any, ours: Tokenizer, text: str) -> None:
    assert [*ours.bos_ids, *ours.encode_specials(text)] == expected_ids(theirs, text)


@pytest.mark.parametrize("text", TEXTS)
def test_the_texts_of_ids_are_theirs(theirs: Any, ours: Tokenizer, text: str) -> None:
    ids = expected_ids(theirs, text)
    wanted = theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids) == wanted.removesuffix("\ufffd")  # without half a character at its end


def test_the_logits_are_theirs(folder: Path, model: Any, ours: Tokenizer) -> None:
    ids = torch.tensor([[*ours.bos_ids, *ours.encode("the king went to the sea")]])
    with torch.inference_mode():
        assert torch.equal(load_gpt2(read_checkpoint(folder))(ids).logits, model(ids).logits)


def greedy(model: Any, ids: list[int], ends: set[int], num_new: int) -> list[int]:
    """What transformers says, up to the end of text."""
    with torch.inference_mode():
        for _ in range(num_new):
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
            if ids[-1] in ends:
                break
    return ids


def test_the_greedy_texts_are_theirs(folder: Path, theirs: Any, ours: Tokenizer, model: Any) -> None:
    config = EngineConfig(
        folder=folder, device="cpu", precision="float32", backend="reference", max_running=4, num_threads=1
    )
    engine = build_engine(config, ours)
    for index, prompt_text in enumerate(TEXTS[:3]):
        prompt = expected_ids(theirs, prompt_text)
        given = model.generation_config.eos_token_id
        wanted = greedy(model, prompt, {*ours.eos_token_ids, *([given] if given is not None else [])}, 12)
        params = SamplingParams(max_new_tokens=12, temperature=0.0, stop_token_ids=ours.eos_token_ids)
        engine.add(Sequence(Job(), index, SequenceRequest(tuple(prompt), params), 0.0))
        outputs = list(run(engine))
        ids = [token_id for output in outputs for token_id in output.token_ids]
        assert prompt + ids == wanted
        decoded = [theirs.decode(part, skip_special_tokens=True) for part in (wanted, prompt)]
        shown = "".join(output.text for output in outputs)  # without half a character at its end
        assert shown.rstrip("\ufffd") == decoded[0][len(decoded[1]) :].rstrip("\ufffd")


def run(engine: Any) -> Iterator[Any]:
    while engine.has_work:
        yield from (output for _, output in engine.step())
