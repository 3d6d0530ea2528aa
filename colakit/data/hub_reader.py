"""The reader of ``data.source = "hub"``: a dataset of the hub, or what was prepared of it while the hub was there."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from colakit.config.schema import SourceConfig
from colakit.data.cache import write_json
from colakit.data.document import Document, OnBad
from colakit.data.hub import HubDataset
from colakit.data.meter import Meter
from colakit.errors import DataError

log = logging.getLogger(__name__)


class HubReader:
    """A `HubDataset` as a reader: a position's second number counts the rows that are behind it.

    Which commit it was is remembered in `cache`, so that what a stream was tokenised to is found without the hub.
    """

    def __init__(self, config: SourceConfig, cache: Path) -> None:
        self._dataset = HubDataset(config)
        asked = (config.dataset, config.dataset_config, config.dataset_split, config.text_field)
        key = hashlib.blake2b(json.dumps(asked).encode(), digest_size=16).hexdigest()
        self._record = cache / "hub" / f"{key}.json"
        self._identity: str | None = None
        self._is_replayable: bool | None = None

    @property
    def is_replayable(self) -> bool:
        """Whether `identity`, which was asked for before, names a commit."""
        assert self._is_replayable is not None
        return self._is_replayable

    def check(self) -> None:
        """Only asking the hub would tell."""

    def identity(self) -> str:
        """Of dataset, commit, configuration, split and text field. Where they cannot be had, as they were last."""
        try:
            identity, self._is_replayable = self._dataset.identity(), self._dataset.is_replayable
        except DataError as error:
            known = self._recall()
            if known is None:
                raise
            self._identity, self._is_replayable = known
            log.warning("%s Looking for what was prepared of %s.", error, self._identity)
            return self._identity
        self._identity = identity
        self._remember()
        return identity

    def check_unchanged(self) -> None:
        """A commit stays as it is."""

    def meter(self) -> Meter:
        """A meter that does not know how much there is."""
        return Meter()

    def read(self, on_bad: OnBad, start: tuple[int, int], meter: Meter) -> Iterator[tuple[tuple[int, int], Document]]:
        """The documents behind the first `start[1]` rows."""
        found = self._dataset.identity()
        if found != self._identity:  # the hub is back, and has changed
            raise DataError(f"the dataset is {found} by now, not {self._identity}. Start again.")
        for document in self._dataset.read(on_bad, skip=start[1]):
            yield (0, self._dataset.n_rows_read), document

    def _recall(self) -> tuple[str, bool] | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(self._record.read_text("utf-8"))
            return str(known["identity"]), bool(known["is_replayable"])
        return None

    def _remember(self) -> None:
        """Write what helps later; a cache that cannot be written is reported by what needs it."""
        with suppress(OSError):
            write_json(self._record, {"identity": self._identity, "is_replayable": self._is_replayable})
