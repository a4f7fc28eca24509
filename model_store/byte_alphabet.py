"""How byte-level vocabularies spell bytes that no character shows."""

from functools import lru_cache


@lru_cache(maxsize=1)
def bytes_by_character() -> dict[str, int]:
    """Invert GPT-2's table of printable stand-ins: character -> byte.

    Source: Radford et al. 2019, encoder.py, `bytes_to_unicode`.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}
