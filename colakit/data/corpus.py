"""The embedded default corpus: source and language reference of the running Python, there on every machine.

Modules come first, in the order of their path, then the topics of ``help()``. Left out are tests, other people's
packages, and files that the build of this Python wrote rather than its authors.
"""

import hashlib
import importlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from colakit.data.document import Document, OnBad
from colakit.data.meter import Meter
from colakit.errors import DataError

_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "_bundled", "lib-dynload"}
)
# The topics are documents of their own.
_SKIPPED_FILES = frozenset({"pydoc_data/topics.py"})
# Written by the build, with this machine's paths in them.
_GENERATED_PREFIXES = ("_sysconfigdata", "config-")
# One group each, since their members repeat each other and would put training text into held-out: the code tables
# come from one template, and many topics are whole inside another.
_CODE_TABLES = "encodings"
_TOPICS = "topics"


def stdlib_root() -> Path:
    """The folder of the standard library's source. Raises DataError where this Python comes without it."""
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "os.py").is_file():
        raise DataError(
            f"data.source = 'stdlib': {root} holds no Python source (a zipped or stripped Python). "
            "Give a text of your own with --data PATH, or use a Python that was installed with its library."
        )
    return root


class StandardLibrary:
    """The reader of ``data.source = "stdlib"``."""

    @property
    def is_replayable(self) -> bool:
        """Always."""
        return True

    def check(self) -> None:
        """Raise DataError where this Python comes without its source."""
        stdlib_root()

    def identity(self) -> str:
        """A hash of all documents: reading them takes no longer than looking for changes would."""
        content = hashlib.blake2b(digest_size=16)
        for document in read_stdlib():
            content.update(f"{document.id}\0{document.text}\0".encode())
        return f"stdlib {content.hexdigest()}"

    def check_unchanged(self) -> None:
        """The library of a running Python stays as it is."""

    def meter(self) -> Meter:
        """Without a total: it is read within a second."""
        return Meter()

    def read(self, on_bad: OnBad, start: tuple[int, int], meter: Meter) -> Iterator[tuple[tuple[int, int], Document]]:
        """Documents from number `start[1]` on, each with the position behind it."""
        for index, document in enumerate(read_stdlib()):
            if index >= start[1]:
                yield (0, index + 1), document


def read_stdlib() -> Iterator[Document]:
    """Every module and topic, in a fixed order. Raises DataError where this Python comes without its source."""
    yield from _modules(stdlib_root())
    yield from _topics()


def _modules(root: Path) -> Iterator[Document]:
    for relative in sorted(_module_paths(root)):
        try:
            text = (root / relative).read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # a module in another encoding, as a test of encodings may be
        if text.strip():
            yield Document(text, _module_id(relative))


def _module_paths(root: Path) -> Iterator[str]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not _is_skipped(name)]
        for name in names:
            relative = (Path(folder) / name).relative_to(root).as_posix()
            if name.endswith(".py") and not _is_skipped(name) and relative not in _SKIPPED_FILES:
                yield relative


def _is_skipped(name: str) -> bool:
    return name in _SKIPPED_FOLDERS or name.startswith(_GENERATED_PREFIXES)


def _module_id(relative: str) -> str:
    folder, _, name = relative.rpartition("/")
    return f"{folder}#{name}" if folder == _CODE_TABLES else relative


def _topics() -> Iterator[Document]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return  # some distributions package the topics apart; the modules alone are a corpus
    for name in sorted(topics):
        if topics[name].strip():
            yield Document(topics[name], f"{_TOPICS}#{name}")
