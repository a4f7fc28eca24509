"""Text to token ids and back, for every tokenizer a GPT-2 checkpoint comes with.

`Tokenizer` wraps the `tokenizers` library: byte-level BPE (GPT-2's own kind), WordPiece (Chinese GPT-2s) and
SentencePiece-like vocabularies. What it adds: special tokens that a user types stay text, and every token's
bytes are known one by one, so that text can be streamed. No training here (`model_store/training/bpe.py`), no
reading of folders (`model_store/tokenizer_files.py`). Read `model_store/task.py` next.
"""

import codecs
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import processors

from model_store.added_tokens import with_marks, without_marks
from model_store.borders import is_cjk
from model_store.byte_alphabet import bytes_by_character
from model_store.errors import InvalidText, StoreError, TokenizerError, UnreadableFile
from model_store.normalizer import character_normalizer
from model_store.tokenizer_files import (
    LoadedTokenizer,
    PieceStyle,
    load_files,
    loads_at_once,
    tokenizer_files,
)

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "\u2581"  # SentencePiece writes a space so
_NO_SPACE_BEFORE = (b".", b"?", b"!", b",", b"n't", b"'m", b"'s", b"'ve", b"'re")  # of a WordPiece decoder
# what two equal tokenizers agree on
_PROBES = (" The quick brown fox, 1984.", "naïve Größe 天气很好", "\n\n  x")
_PANIC = "PanicException"  # of Rust: no Exception, and in no module that could be imported
_LONG_TEXT = 4096  # characters whose encoding takes a few milliseconds


class Tokenizer:
    """Encodes texts and gives each token's bytes. Thread-safe: nothing in it changes after loading.

    Args:
        loaded: The files' contents, from `tokenizer_files.load_files`.
        num_embeddings: The model's; None where there is no model yet.

    Raises:
        TokenizerError: A token that text can become lies beyond the model's embeddings. Special tokens there
            (a padding mark never trained) do no harm.
    """

    def __init__(self, loaded: LoadedTokenizer, num_embeddings: int | None = None) -> None:
        self._backend = loaded.backend
        self._backend.encode_special_tokens = True  # "<|endoftext|>" typed by a user is text
        self._style: PieceStyle = loaded.style
        added: dict[int, Any] = self._backend.get_added_tokens_decoder()
        self._added = {token_id: str(token.content) for token_id, token in added.items()}
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._pieces: dict[int, bytes] = {}
        self._cleans_up, self._drops_first_space = loaded.cleans_up, loaded.drops_first_space
        self._normalize = character_normalizer(self._backend)
        self.named_specials = loaded.named_specials
        self.bos_ids: tuple[int, ...] = loaded.bos_ids
        self.frame_ids = loaded.frame_ids if any(loaded.frame_ids) else (self.bos_ids, ())
        self.eos_token_ids: tuple[int, ...] = loaded.eos_token_ids
        num_tokens: int = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        self.vocab_size = num_embeddings or num_tokens
        if any(token_id >= self.vocab_size for token_id in self.bos_ids):
            raise TokenizerError(
                f"the tokenizer puts token {max(self.bos_ids)} before every text; "
                f"the model has embeddings for {self.vocab_size} tokens"
            )
        if not self._special_ids.issuperset(range(self.vocab_size, num_tokens)):
            raise TokenizerError(
                f"the tokenizer has {num_tokens} tokens, the model embeddings for {num_embeddings}; "
                "call model.resize_token_embeddings and train on, or remove the added tokens"
            )
        specials = {i: self._added[i] for i in self._special_ids}
        self.longest_special = max(map(len, specials.values()), default=0)  # in code points
        # two, since what they do with special tokens is a switch, and so state
        self._reading_text = without_marks(self._backend, specials)
        self._recognising = with_marks(self._backend, self.vocab_size)

    @classmethod
    def load(cls, folder: Path, num_embeddings: int | None = None) -> "Tokenizer":
        """Load a checkpoint's tokenizer.

        Args:
            folder: A Hugging Face model folder: `tokenizer.json`, or `vocab.json` and `merges.txt`, or
                `vocab.txt`, or what transformers can convert.
            num_embeddings: The model's; None where there is no model yet.

        Raises:
            TokenizerError, UnreadableFile: Files are missing, broken, of a kind that cannot be streamed, or
                do not fit the model.
        """
        try:
            return cls(load_files(folder, num_embeddings), num_embeddings)
        except UnreadableFile:
            raise
        except StoreError as error:
            raise TokenizerError(f"{folder}: {error}") from error
        except BaseException as error:  # the Rust side raises bare Exception, or panics
            if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
                raise
            raise TokenizerError(f"the tokenizer in {folder} cannot be read: {error}") from error

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, whatever files it was loaded from."""
        backend = type(self._backend).from_str(self._backend.to_str())
        if self.bos_ids:
            marks = [(backend.id_to_token(token_id), token_id) for token_id in self.bos_ids]
            single = [*(text for text, _ in marks), "$A"]
            backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=marks)
        backend.save(str(folder / "tokenizer.json"))

    def is_same(self, other: "Tokenizer") -> bool:
        """Say whether another tokenizer gives the same ids, marks and ends."""
        texts = (*_PROBES, *self._added.values())

        def traits(tokenizer: "Tokenizer") -> tuple[object, ...]:
            marks = (tokenizer.bos_ids, tokenizer.eos_token_ids, tokenizer._special_ids, tokenizer._style)
            return *marks, tokenizer._backend.get_vocab(), list(map(tokenizer.encode_specials, texts))

        return traits(self) == traits(other)

    @property
    def eos_id(self) -> int:
        """The token that ends a text; also what an empty prompt becomes."""
        return self.eos_token_ids[0]

    @property
    def is_contextual(self) -> bool:
        """Whether what a token writes may depend on the one before it."""
        return self._style != "byte_level"

    @property
    def special_texts(self) -> list[str]:
        """The texts that `encode_specials` takes for special tokens."""
        return [self._added[token_id] for token_id in sorted(self._special_ids)]

    def encode(self, text: str) -> list[int]:
        """Give the ids of a user's text. Adds no special token and recognises none.

        Raises:
            InvalidText: The text holds lone surrogates, or what the vocabulary cannot write.
        """
        check_text(text)
        ids: list[int] = _encode(self._reading_text, text).ids
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Give ids and, for each, (start, end) in code points of `text`.

        A token that holds some bytes of a character has the offsets of the whole character.

        Raises:
            InvalidText: The text holds lone surrogates, or what the vocabulary cannot write.
        """
        check_text(text)
        encoding = _encode(self._reading_text, text)
        return encoding.ids, encoding.offsets

    def encode_specials(self, text: str) -> list[int]:
        """Give the ids of a template's literal, or of a prompt that the caller writes as a whole: special
        tokens written in it are recognised.

        Raises:
            InvalidText: The text holds lone surrogates, or what the vocabulary cannot write.
        """
        check_text(text)
        ids: list[int] = _encode(self._recognising, text).ids
        return ids

    def normalized(self, text: str) -> str:
        """Give a text as its tokens tell it, in a normal form, perhaps without case or accents."""
        return text if self._normalize is None else self._normalize(text)

    def piece(self, previous_id: int | None, token_id: int) -> bytes:
        """Give the bytes that a token adds to the text: UTF-8, maybe a part of a character.

        Args:
            previous_id: The last token of text before it, in the prompt, too; None at the start
                of a text. Matters where spaces are implied.
            token_id: The token; special tokens and ids out of the vocabulary add nothing.
        """
        own = self._own_piece(token_id)
        if self._style == "byte_level" or not own:
            return own
        before = b"" if previous_id is None else self._own_piece(previous_id)
        if self._style == "metaspace":
            return own if before or not self._drops_first_space else own.removeprefix(b" ")
        if own.startswith(b"##") and len(own) > 2:
            return own[2:]
        is_joined = not before or is_cjk(before.decode()[-1]) or is_cjk(own.decode()[0])
        return own if is_joined or (self._cleans_up and own.startswith(_NO_SPACE_BEFORE)) else b" " + own

    def name_of(self, token_id: int) -> str:
        """Give what the vocabulary calls a token; "" where it knows none."""
        return self._backend.id_to_token(token_id) or ""

    def special_piece(self, previous_id: int | None, token_id: int) -> bytes:
        """Give the bytes of a special token that is shown; WordPiece puts a space before, as for a word."""
        text = self._added[token_id].encode()
        return b" " + text if self._style == "wordpiece" and previous_id is not None else text

    def decode(self, ids: Sequence[int], shows_specials: bool = False) -> str:
        """Give the text of `ids`: their pieces joined, those of special tokens where they are shown. Invalid
        bytes become U+FFFD, half a character at the end is left out."""
        pieces = []
        previous_id = None
        for token_id in ids:
            if self.is_special(token_id):
                pieces.append(self.special_piece(previous_id, token_id) if shows_specials else b"")
                continue
            pieces.append(self.piece(previous_id, token_id))
            previous_id = token_id
        return codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(pieces))

    def is_special(self, token_id: int) -> bool:
        """Say whether a token is a mark (end of text, padding, …) and no text."""
        return token_id in self._special_ids

    def _own_piece(self, token_id: int) -> bytes:
        """The bytes of one token, whatever stands before it; WordPiece keeps its "##"."""
        own = self._pieces.get(token_id)
        if own is None:
            own = self._pieces[token_id] = self._make_piece(token_id)
        return own

    def _make_piece(self, token_id: int) -> bytes:
        if token_id in self._special_ids or token_id < 0:
            return b""
        if token_id in self._added:
            return self._added[token_id].encode()
        token: str | None = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._style == "metaspace":
            byte = _BYTE.fullmatch(token)
            return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE_MARK, " ").encode()
        table = bytes_by_character() if self._style == "byte_level" else {}
        try:
            return bytes(map(table.__getitem__, token))
        except KeyError:  # of a WordPiece, or not in the byte alphabet: an entry somebody wrote by hand
            return token.encode()


def copy_tokenizer(source: Path, target: Path, num_embeddings: int) -> Tokenizer:
    """Copy a tokenizer's files into the folder of a model, whose config.json is there already.

    A tokenizer that only transformers can convert gets a tokenizer.json, and is converted but once.

    Raises:
        TokenizerError: It cannot be loaded, or what was written is another one.
    """
    tokenizer = Tokenizer.load(source, num_embeddings)
    for path in tokenizer_files(source):
        shutil.copyfile(path, target / path.name)
    if not loads_at_once(source):
        tokenizer.save(target)
    if not Tokenizer.load(target, num_embeddings).is_same(tokenizer):
        raise TokenizerError(f"the tokenizer that was written to {target} is not the one in {source}")
    return tokenizer


def _encode(backend: Any, text: str) -> Any:
    """Encode a text; a long one as a batch of one, which leaves the interpreter to other threads.

    Raises:
        InvalidText: The vocabulary has no token for something in it, nor one for what is unknown.
    """
    try:
        if len(text) <= _LONG_TEXT:
            return backend.encode(text, add_special_tokens=False)
        return backend.encode_batch([text], add_special_tokens=False)[0]
    except Exception as error:  # the Rust side has no other class
        raise InvalidText(f"the model's vocabulary cannot write the text: {error}") from error


def check_text(text: str) -> None:
    """Raise `InvalidText` when a text has no UTF-8.

    Raises:
        InvalidText: Names the position of the first lone surrogate, never the text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidText(
            f"the text is not valid Unicode: a lone surrogate at character {error.start}"
        ) from None
