"""Opens data files, plain or compressed, and gives their lines as text: encodings are found out here.

UTF-8 is the rule; a byte order mark says UTF-16 or UTF-32. Tables (CSV, TSV) may also be Windows-1252, as
Excel writes them in the West; another encoding has to be named, since it can only be guessed. No formats
here: see `tables.py` and `text_files.py`.
"""

import codecs
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from model_store.training.errors import InvalidData, InvalidOption, MissingExtra

PACKED = (".zst", ".gz")
_ZSTD_WINDOW = 1 << 31  # files made with `zstd --long` need a large window
_CHUNK = 1 << 16
_WESTERN = "cp1252"
_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def check_encoding(name: str) -> str:
    """Give an encoding's name as it was given; "" stands for finding it out.

    Raises:
        InvalidOption: Python knows no encoding of that name.
    """
    try:
        codecs.lookup(name or "utf-8")
    except LookupError:
        raise InvalidOption("--encoding", f"{name!r} is no encoding; gb18030 or cp1251 are") from None
    return name


def lines(path: Path, encoding: str = "") -> Iterator[tuple[int, str]]:
    """Yield (line number, line without its end) of a file, decompressed when its name ends in .zst or .gz.

    Args:
        path: The file.
        encoding: As Python names it; "" for what a byte order mark says, else UTF-8.

    Raises:
        InvalidData: A line is not of that encoding, or the compressed stream is broken.
    """
    with opened(path) as stream:
        name = encoding or marked_encoding(stream) or "utf-8"
        number, wide = 0, name.lower().startswith(("utf-16", "utf-32"))
        try:
            if wide:  # a line's end is no single byte
                with io.TextIOWrapper(stream, name, newline="\n") as text:
                    for number, line in enumerate(text, start=1):
                        yield number, line.rstrip("\r\n")
                return
            for number, raw in enumerate(stream, start=1):
                first = "utf-8-sig" if number == 1 and name == "utf-8" else name
                yield number, raw.decode(first).rstrip("\r\n")
        except UnicodeDecodeError as error:
            shown = "UTF-8" if name == "utf-8" else name
            problem = f"is not {shown}: byte {error.object[error.start]:#04x} at place {error.start}"
            where = "after this line" if wide else "of the line"
            raise InvalidData(path, f"{problem} {where}", number) from error
        except UnicodeError as error:
            raise InvalidData(path, f"is not {name}: {error}", number) from error


def chunks(path: Path, encoding: str = "") -> Iterator[str]:
    """Yield a file's text in pieces of any length, for what does not go by lines. Raises as `lines`."""
    with opened(path) as stream:
        name = encoding or marked_encoding(stream) or "utf-8-sig"
        decoder = codecs.getincrementaldecoder(name)()
        number = 1
        try:
            while raw := stream.read(_CHUNK):
                if text := decoder.decode(raw):
                    number += text.count("\n")
                    yield text
            decoder.decode(b"", final=True)
        except UnicodeError as error:
            raise InvalidData(path, f"is not {name.upper()} behind this line: {error}", number) from error


def marked_encoding(stream: BinaryIO) -> str:
    """Say what a stream's byte order mark names, "" without one; the stream stays where it is."""
    head = stream.peek(4)[:4]  # type: ignore[attr-defined]  # all three kinds of stream have it
    return next((name for mark, name in _MARKS if head.startswith(mark)), "")


def table_encoding(path: Path) -> str:
    """Find out the encoding of a table: a byte order mark's, UTF-8, or Windows-1252.

    Raises:
        InvalidData: It is none of them: most bytes above 0x7f stand side by side, which accents do not.

    Cost: reads the file once.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_utf8, alone, together = True, 0, 0
    with opened(path) as stream:
        if marked := marked_encoding(stream):
            return marked
        while chunk := stream.read(1 << 20):
            if is_utf8:
                try:
                    decoder.decode(chunk)
                except UnicodeDecodeError:
                    is_utf8 = False
            high = bytes(byte > 0x7F for byte in chunk) if not is_utf8 else b""
            alone += high.count(b"\x00\x01\x00")
            together += high.count(b"\x01\x01")
    if is_utf8:
        return "utf-8"
    if together > alone:
        raise InvalidData(
            path,
            "is neither UTF-8 nor Windows-1252; save it as UTF-8 (Excel: 'CSV UTF-8'), "
            "or name its encoding, as --encoding gb18030",
        )
    return _WESTERN


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file's bytes, decompressed when its name ends in .zst or .gz.

    Raises:
        InvalidData: The compressed stream is broken.
        MissingExtra: `zstandard` is not installed.
    """
    with path.open("rb") as raw:
        if path.suffix == ".gz":
            try:
                yield gzip.GzipFile(fileobj=raw)  # type: ignore[misc]  # it is one but in name
            except (gzip.BadGzipFile, EOFError) as error:
                raise InvalidData(path, f"cannot be decompressed: {error}") from error
            return
        if path.suffix != ".zst":
            yield raw
            return
        try:
            import zstandard
        except ModuleNotFoundError as error:
            raise MissingExtra("zstandard") from error
        try:
            stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(raw)
            with io.BufferedReader(stream, 1 << 18) as unpacked:
                yield unpacked
        except zstandard.ZstdError as error:
            raise InvalidData(path, f"cannot be decompressed: {error}") from error
