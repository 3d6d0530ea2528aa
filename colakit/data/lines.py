"""Documents from .txt and .jsonl(.gz, .zst) files: our own reader, since a fault must name its file and line."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from colakit.data.document import Document, OnBad, id_of
from colakit.data.meter import Meter
from colakit.errors import DataError

MIN_CHUNK_BYTES = 8 * 1024
MAX_CHUNK_BYTES = 16 * 1024
LINE_PART_CHARS = 16 * 1024
_BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 64 * 1024


def read_txt(path: Path, name: str | None, on_bad: OnBad, meter: Meter) -> Iterator[Document]:
    """The text of `path`, cut so that a part can be held out; the documents joined are the text, nothing left out.

    A cut comes before a line with text: after a blank line once there are 8 KiB, after any line once there are
    16 KiB. With a `name`, the documents are one group of it; without, they are pieces, each a group.
    """
    chunks = _chunks(part for _, line in read_lines(path, on_bad, meter) for part in _line_parts(line))
    for index, text in enumerate(chunks):
        if text.strip():
            yield Document(text, piece=index) if name is None else Document(text, f"{name}#{index}")


def read_jsonl(path: Path, text_field: str, on_bad: OnBad, meter: Meter) -> Iterator[Document]:
    """One document per line: its `text_field`, and its ``id`` where it has one. Blank lines and texts are skipped."""
    for number, line in read_lines(path, on_bad, meter):
        if line.strip():
            try:
                document = _parse(line, f"{path}, line {number}", text_field)
            except DataError as error:
                on_bad(error)
                continue
            if document.text.strip():
                yield document


def read_lines(path: Path, on_bad: OnBad, meter: Meter) -> Iterator[tuple[int, str]]:
    """The lines of `path` and their numbers, line ends included, a byte order mark taken off. Ends at ``\\n`` alone.

    A line that is no UTF-8 text is bad, and so is an empty file. Raises DataError for damaged gzip or Zstandard data.
    """
    number = 0
    try:
        # The meter asks the file how far it is, so it lets go before the file is closed.
        with path.open("rb") as file, _decompressed(file, path) as handle, meter.reading(file):
            for number, raw in enumerate(handle, start=1):
                try:
                    line = _decode(raw.removeprefix(_BOM) if number == 1 else raw, path, number)
                except DataError as error:
                    on_bad(error)
                else:
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        if number == 0 and isinstance(error, gzip.BadGzipFile):
            raise DataError(
                f"{path}: no gzip data, though its name ends in .gz. Rename it, or fetch it again."
            ) from error
        raise DataError(
            f"{path}, after line {number}: the gzip data is truncated or damaged ({error}). Fetch the file again; "
            f"`gzip -t {path}` checks it."
        ) from error
    except OSError as error:
        if error.errno is None:  # not the system's: pyarrow's decompression
            raise DataError(
                f"{path}, after line {number}: the Zstandard data is truncated or damaged ({error}). Fetch the file "
                f"again; `zstd -t {path}` checks it."
            ) from error
        raise DataError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    if number == 0:
        on_bad(DataError(f"{path} is empty. Remove it, or fetch it again if it should hold text."))


def looks_like_text(path: Path) -> bool:
    """Whether the beginning of `path` is free of what only binary files hold. Raises OSError where it is unreadable."""
    with path.open("rb") as handle:
        return not _has_controls(handle.read(_HEAD_BYTES))


def _has_controls(raw: bytes) -> bool:
    """Whether there are control characters that no text has."""
    return any(byte < 9 or 13 < byte < 27 for byte in raw)


def _decompressed(file: IO[bytes], path: Path) -> IO[bytes]:
    # cast: these read like any binary file, but have no type that says so
    if path.name.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.open(file, "rb"))
    if path.name.lower().endswith(".zst"):
        import pyarrow  # has a decoder, which Python 3.11 has not

        return cast(IO[bytes], io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd")))
    return file


def _decode(raw: bytes, path: Path, number: int) -> str:
    if b"\0" in raw:
        raise DataError(
            f"{path}, line {number}: a NUL byte, so this is a binary file or UTF-16 text. Give plain text; "
            f"UTF-16 becomes UTF-8 with `iconv -f utf-16 -t utf-8 {path} > converted{path.suffix}`."
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if _has_controls(raw[:_HEAD_BYTES]):
            raise DataError(f"{path}, line {number}: a binary file, not text. Leave it out.") from error
        raise DataError(
            f"{path}, line {number}: byte 0x{raw[error.start]:02x} is not UTF-8. Convert the file, for instance with "
            f"`iconv -f latin1 -t utf-8 {path} > converted{path.suffix}`."
        ) from error


def _line_parts(line: str) -> Iterator[str]:
    """The line, or a giant one cut behind spaces, so that a text without line ends still makes documents.

    A cut depends on what is before it alone: what is appended to a text moves none.
    """
    start = 0
    while len(line) - start > LINE_PART_CHARS:
        space = line.find(" ", start + LINE_PART_CHARS - 1, start + 2 * LINE_PART_CHARS)
        end = space + 1 if space >= 0 else start + 2 * LINE_PART_CHARS
        if end >= len(line):
            break
        yield line[start:end]
        start = end
    yield line[start:]


def _chunks(lines: Iterator[str]) -> Iterator[str]:
    held: list[str] = []
    n_bytes = 0
    after_blank = False
    for line in lines:
        is_blank = not line.strip()
        enough = n_bytes >= (MIN_CHUNK_BYTES if after_blank else MAX_CHUNK_BYTES)
        if enough and not is_blank:
            yield "".join(held)
            held, n_bytes = [], 0
        held.append(line)
        n_bytes += len(line.encode())
        after_blank = is_blank
    if held:
        yield "".join(held)


def _parse(line: str, where: str, text_field: str) -> Document:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of over 4300 digits
        fault = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{where}: not valid JSON ({fault}). JSONL holds one object on each line.") from error
    if not isinstance(row, dict):
        raise DataError(f'{where}: {_json_type(row)}, not an object. Write each line as {{"{text_field}": "…"}}.')
    if text_field not in row:
        keys = ", ".join(repr(key) for key in row) or "none"
        raise DataError(
            f"{where}: the object has no {text_field!r} (its keys: {keys}). Name the one that holds the text with "
            "--set data.text_field=KEY."
        )
    text, name = row[text_field], row.get("id")
    if not isinstance(text, str):
        raise DataError(f"{where}: {text_field!r} is {_json_type(text)}, not a string. Write the text as one string.")
    document = Document(text, id_of(name))
    _check_unicode(document, where)
    return document


def _check_unicode(document: Document, where: str) -> None:
    """JSON can spell half a surrogate pair (``"\\ud83d"``), which no UTF-8 text holds."""
    try:
        document.text.encode()
        (document.id or "").encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: half of a surrogate pair (\\u{ord(error.object[error.start]):04x}), as a text cut inside an "
            "emoji has. Remove it, or write the whole character."
        ) from error


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names: dict[type, str] = {bool: "true or false", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")
