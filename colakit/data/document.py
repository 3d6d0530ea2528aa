"""What a source yields. Kept apart so that each source can import it without importing the others."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One text, with the name its source gives it. Documents of one group are never split over two sides."""

    text: str
    id: str | None = None

    @property
    def group(self) -> str:
        """The part of `id` before ``#`` where there is one, else the text itself: `book#3` belongs to `book`."""
        if self.id is not None and "#" in self.id:
            return self.id.partition("#")[0]
        return self.text
