"""The file of API keys: one key a line, with the names of their tenants."""

from __future__ import annotations

import re
from pathlib import Path

_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LEGAL_TENANT = "1 … 64 letters, digits, dots, hyphens and underscores"


def read_keys(path: Path) -> dict[str, str]:
    """Keys of a file, each with the name of its tenant or "".

    `#` begins a comment; `#tenant=NAME` names the tenant of the next key. Errors never show a key.

    Raises:
        ValueError: the file cannot be read, holds no key, or a name that is not legal.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # sig: some editors write a mark first
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"TEXTGEN_API_KEYS_FILE cannot be read ({type(error).__name__})") from error
    keys: dict[str, str] = {}
    tenant = ""
    # Lines end as in other text files; `splitlines` would also part a key at U+0085 or U+2028.
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if line.startswith("#tenant="):
            tenant = line.removeprefix("#tenant=").strip()
            if not _TENANT.fullmatch(tenant):
                raise ValueError(
                    f"TEXTGEN_API_KEYS_FILE names a tenant in line {number} that is not legal; "
                    f"legal is {_LEGAL_TENANT}"
                )
        elif line and not line.startswith("#"):
            keys[line], tenant = tenant, ""
    if not keys:
        raise ValueError("TEXTGEN_API_KEYS_FILE holds no key; unset it to serve without keys")
    return keys
