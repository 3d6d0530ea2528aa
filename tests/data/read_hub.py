"""A process that reads datasets as told on stdin: the hub's address and the caches are fixed when it is imported."""

import json
import logging
import sys
import time
import urllib.request
from itertools import islice
from typing import Any

from colakit.config.schema import DataConfig, SourceConfig
from colakit.data import software_heritage
from colakit.data.hub import HubDataset
from colakit.data.store import StoreWriter
from colakit.errors import DataError


def answer(post: str | None = None, **job: Any) -> dict[str, Any]:
    """What a user gets to see, after a word to the server if `post` says which."""
    if post is not None:
        urllib.request.urlopen(post, data=b"").close()
    return prepared(**job) if "prepare" in job else read(**job)


def prepared(prepare: dict[str, Any], parts: int | None = None) -> dict[str, Any]:
    """What `prepare` makes of that DataConfig; after so many parts it is interrupted."""
    from colakit.data import prepare as module
    from colakit.data import tokenise

    tokenise._BATCH_CHARS, tokenise._PART_BYTES = 20, 40
    honest = module.StoreWriter.write

    def write(self: StoreWriter, *args: Any) -> None:
        if parts is not None and self.n_parts == parts:
            raise KeyboardInterrupt
        honest(self, *args)

    module.StoreWriter.write = write  # type: ignore[method-assign]
    try:
        data = module.prepare(DataConfig(source="hub", **prepare), seq_len=4, vocab_size=300)
        sides = {"train": data.train["data"], "held_out": data.held_out}
        blocks = {name: [each[i].tolist() for i in range(len(each))] for name, each in sides.items()}
        return {**data.describe(), "blocks": blocks, "error": None}
    except (DataError, KeyboardInterrupt) as error:
        return {"error": str(error)}
    finally:
        module.StoreWriter.write = honest  # type: ignore[method-assign]


def read(
    source: dict[str, Any], skip: int = 0, take: int | None = None, *, fails: bool = False, twice: bool = False
) -> dict[str, Any]:
    """The documents of one `HubDataset`, what is said of them, and how that ends."""
    bad: list[str] = []
    bad_once: list[DataError] = []

    def on_bad(error: DataError) -> None:
        if fails:
            raise error
        bad.append(str(error))

    start = time.monotonic()
    found: dict[str, Any] = {"documents": [], "bad": bad, "rows": [], "error": None}
    try:
        dataset = HubDataset(SourceConfig(source="hub", **source))
        if twice:
            list(dataset.read(bad_once.append, skip=1))
        for document in islice(dataset.read(on_bad, skip=skip), take):
            found["documents"].append([document.text, document.id])
            found["rows"].append(dataset.n_rows_read)
        found["identity"] = dataset.identity()
        found["is_replayable"] = dataset.is_replayable
    except DataError as error:
        found["error"] = str(error)
    return {**found, "seconds": time.monotonic() - start}


def main() -> None:
    """Read the jobs and write their answers, each a JSON list."""
    assert not {"datasets", "huggingface_hub", "pyarrow"} & sys.modules.keys()  # imported where they are used
    told = json.load(sys.stdin)
    if "content_url" in told:
        software_heritage.CONTENT_URL = told["content_url"]
        software_heritage._PAUSES_S = (0.01, 0.02)
    logging.basicConfig(level=logging.WARNING, format="LOG %(message)s")
    print(json.dumps([answer(**job) for job in told["jobs"]]))


if __name__ == "__main__":
    main()
