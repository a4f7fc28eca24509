"""What a tokenizer changes in characters before it reads them: NFKC, lost case, lost accents.

Of a tokenizer's normalizer only these steps are taken here; what it does to white space and word marks shows
in the tokens' pieces. Read `model_store/tokenizer.py` next.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from tokenizers import Tokenizer as Backend

_OF_CHARACTERS = {"NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "Precompiled"}


def character_normalizer(backend: Any) -> Callable[[str], str] | None:
    """The steps that change characters, as a function of a text; None where there are none.

    Args:
        backend: A tokenizer of the `tokenizers` library.
    """
    if backend.normalizer is None:
        return None
    steps = list(_steps(json.loads(backend.normalizer.__getstate__())))
    if not steps:
        return None
    bare: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    normalizer = Backend.from_str(json.dumps(bare)).normalizer
    return lambda text: str(normalizer.normalize_str(text))


def _steps(normalizer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    kind = normalizer["type"]
    if kind == "Sequence":
        for step in normalizer["normalizers"]:
            yield from _steps(step)
    elif kind == "BertNormalizer":
        yield {**normalizer, "handle_chinese_chars": False}  # which puts spaces around them
    elif kind in _OF_CHARACTERS:
        yield normalizer
