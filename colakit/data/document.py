"""What a source yields. Kept apart so that each source can import it without importing the others."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One text, with the name its source gives it. Documents of one group are never split over two sides."""

    text: str
    id: str | None = None

    @property
    def words(self) -> str:
        """The text with one space for each run of white space: equal for copies that differ in line ends or layout."""
        return " ".join(self.text.split())

    @property
    def group(self) -> str:
        """The part of `id` before ``#`` where there is one, else `words`: `book#3` belongs to `book`."""
        if self.id is not None and "#" in self.id:
            return self.id.partition("#")[0]
        return self.words
