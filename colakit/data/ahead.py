"""Work done ahead, in a thread: what is next is ready when it is asked for."""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import Full, Queue
from typing import Generic, TypeVar

T = TypeVar("T")

_LOOK_S = 0.1


@dataclass(frozen=True)
class _End:
    """The last thing in the queue: what ended the iteration, None for its proper end."""

    error: BaseException | None


class ahead(Generic[T]):
    """The items of `items`, made by a thread: `depth` of them, at least 1, wait, and one more is made.

    Close it to end the thread.
    An exception in `items` is raised where its item would have come.
    """

    def __init__(self, items: Iterable[T], depth: int) -> None:
        self._items = items
        self._queue: Queue[T | _End] = Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="colakit-ahead")
        self._thread.start()

    def _run(self) -> None:
        end = _End(None)
        try:
            for item in self._items:
                if not self._put(item):
                    return
        except BaseException as error:
            end = _End(error)
        self._put(end)

    def _put(self, item: T | _End) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_LOOK_S)
            except Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._closed.is_set():
            raise StopIteration
        item = self._queue.get()
        if not isinstance(item, _End):
            return item
        self.close()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """End the thread behind the item it is making, and wait for that."""
        self._closed.set()
        self._thread.join()
