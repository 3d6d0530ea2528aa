"""Source code whose dataset names it alone: the texts are fetched from Software Heritage's public archive.

The Stack v2 and Stack-Edu are such datasets: their rows hold a `blob_id` and the encoding it was written in.
"""

import gzip
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import quote

from colakit.data.document import Document
from colakit.errors import DataError

CONTENT_URL = "https://softwareheritage.s3.amazonaws.com/content/"
COLUMNS = ("blob_id", "src_encoding")
"""What a row must have to be fetched."""
NAME_COLUMNS = ("repo_name", "path")
"""What names its document, where the dataset has it."""

_IN_FLIGHT = 32
_TIMEOUT_S = 10.0
_PAUSES_S = (0.5, 2.0)
"""Before the second and the third try."""
_LOCAL_ADVICE = "Try again later, or use --data PATH for text of your own."


@dataclass(frozen=True, slots=True)
class Blob:
    """One file's content, as the archive knows it, and the id its document shall have."""

    blob_id: str
    encoding: str
    document_id: str

    @classmethod
    def of_row(cls, row: Mapping[str, object]) -> "Blob":
        """The blob of a row with `COLUMNS` and, where there are, `NAME_COLUMNS`.

        A repository's files form one group: the id is ``repository#path``, so neither part may hold a "#" of its own.
        Raises DataError where a column that is needed is null or no string.
        """
        for column in COLUMNS:
            if not isinstance(row[column], str) or not row[column]:
                raise DataError(f"{column!r} is {row[column]!r}, not a name. Drop the row.")
        blob_id = str(row["blob_id"])
        repository, path = (row.get(column) for column in NAME_COLUMNS)
        name = f"{quote(repository)}#{quote(str(path or blob_id))}" if isinstance(repository, str) else blob_id
        return cls(blob_id, str(row["src_encoding"]), name)


def fetch(blobs: Iterable[Blob | DataError]) -> Iterator[Document | DataError]:
    """One result for each of `blobs`, in their order: its document, or why there is none; an error stays what it is.

    Up to 32 are fetched at a time, each with three tries. What the archive does not hold, or what cannot be unpacked
    or decoded, is an error of that blob. Raises DataError where the archive cannot be reached or fails three times:
    to go on without that text would make the data depend on the day.
    """
    stop = threading.Event()
    pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="software-heritage")
    waiting: deque[Future[Document | DataError] | DataError] = deque()
    try:
        for blob in blobs:
            waiting.append(blob if isinstance(blob, DataError) else pool.submit(_document, blob, stop))
            if len(waiting) == _IN_FLIGHT:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _result(done: Future[Document | DataError] | DataError) -> Document | DataError:
    return done if isinstance(done, DataError) else done.result()


def _document(blob: Blob, stop: threading.Event) -> Document | DataError:
    body = _download(blob.blob_id, stop)
    if isinstance(body, DataError):
        return body
    try:
        # Bytes that are not of the named encoding become U+FFFD: a few letters are no reason to lose a file.
        text = body.decode(blob.encoding, errors="replace")
        text.encode()  # an encoding such as raw_unicode_escape can spell half a surrogate pair
        return Document(text, blob.document_id)
    except (LookupError, UnicodeError) as error:
        return DataError(f"the blob {blob.blob_id} cannot be decoded as {blob.encoding!r} ({error}). Drop the row.")


class _TryAgainError(Exception):
    """The archive gave no answer that would stay the same."""


def _download(blob_id: str, stop: threading.Event) -> bytes | DataError:
    """The unpacked content; an error where there is none. Raises DataError where the archive fails three times."""
    url = CONTENT_URL + quote(blob_id)
    reason: Exception | None = None
    for pause_s in (0.0, *_PAUSES_S):
        if stop.wait(pause_s):
            break  # the result is wanted no more
        try:
            return _get(url)
        except _TryAgainError as error:
            reason = error
    raise DataError(f"Software Heritage's archive cannot be read ({url}: {reason}). {_LOCAL_ADVICE}") from reason


def _get(url: str) -> bytes | DataError:
    # The hub's client: it keeps connections alive, is shared by threads, and obeys proxies and HF_HUB_OFFLINE.
    from huggingface_hub import get_session

    # Which errors there are depends on the HTTP client under huggingface_hub, which has changed between its versions.
    try:
        response = get_session().get(url, timeout=_TIMEOUT_S)
        status, content, is_unpacked = response.status_code, response.content, "content-encoding" in response.headers
    except Exception as error:
        raise _TryAgainError((str(error).splitlines() or [type(error).__name__])[0].rstrip(".")) from error
    if status == 429 or status >= 500:
        raise _TryAgainError(f"HTTP status {status}")
    if status != 200:
        return DataError(f"Software Heritage does not give it out (HTTP status {status}: {url}). Drop the row.")
    try:
        return content if is_unpacked else gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        return DataError(f"what Software Heritage gives out is damaged ({error}: {url}). Drop the row.")
