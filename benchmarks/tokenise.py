"""How fast `colakit data prepare` is beside the bare `tokenizers` library, on the same text and cores.

    python benchmarks/tokenise.py --data '../shared/data/prose/gutenberg-*.jsonl.gz' \\
        --tokenizer ../shared/data/tokenizer_smollm2 [--repeats 3]

Prints JSON: seconds and MB of text per second, interleaved, medians, and their ratio. The bare library has its texts in
memory and drops the ids; `prepare` finds, hashes, unpacks and parses the files, encodes, and writes the store.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from tokenizers import Tokenizer

from colakit.config.schema import DataConfig
from colakit.data.cache import cache_root
from colakit.data.prepare import prepare
from colakit.data.sources import Source, Tally

BATCH = 1024
"""Documents that the bare library is given at once: more are not faster, and cost memory."""


def bare_s(texts: list[str], backend: Tokenizer) -> tuple[float, int]:
    """Seconds that `tokenizers` takes for all texts, and how many ids it makes."""
    n_tokens, started = 0, time.perf_counter()
    for first in range(0, len(texts), BATCH):
        encodings = backend.encode_batch_fast(texts[first : first + BATCH], add_special_tokens=False)
        n_tokens += sum(len(encoding) for encoding in encodings)
    return time.perf_counter() - started, n_tokens


def prepare_s(config: DataConfig, folder: Path) -> tuple[float, int]:
    """Seconds that `prepare` takes with an empty cache in `folder`, and how many ids it makes of texts."""
    fresh = config.model_copy(update={"cache_dir": str(folder)})
    started = time.perf_counter()
    prepared = prepare(fresh, seq_len=1024, vocab_size=2**32)
    seconds = time.perf_counter() - started
    lengths = prepared.sources[0].store.lengths
    return seconds, int(lengths.sum() - (lengths > 0).sum())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True, help="a folder with a tokenizer.json")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    config = DataConfig(source="files", path=args.data, tokenizer=args.tokenizer)
    (source,) = (Source(name, each, config, cache_root(config)) for name, each in config.mixture.items())
    texts = [document.text for _, document in source.documents(Tally())]
    n_bytes = sum(len(text.encode()) for text in texts)
    backend = Tokenizer.from_file(str(Path(args.tokenizer) / "tokenizer.json"))
    backend.encode_special_tokens = True  # as colakit has it: a text that says "<|endoftext|>" is text
    bare, ours = [], []
    for _ in range(args.repeats):
        bare.append(bare_s(texts, backend))
        with tempfile.TemporaryDirectory() as folder:
            ours.append(prepare_s(config, Path(folder)))
    assert len({n_tokens for _, n_tokens in bare + ours}) == 1, (bare, ours)
    medians = {
        name: statistics.median(seconds for seconds, _ in each)
        for name, each in (("tokenizers", bare), ("colakit data prepare", ours))
    }
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        "python": platform.python_version(),
        "tokenizers": version("tokenizers"),
        "documents": len(texts),
        "text_bytes": n_bytes,
        "tokens": bare[0][1],
        "s": {name: round(seconds, 2) for name, seconds in medians.items()},
        "all_s": {"tokenizers": [round(s, 2) for s, _ in bare], "colakit data prepare": [round(s, 2) for s, _ in ours]},
        "mb_per_s": {name: round(n_bytes / 1e6 / seconds, 2) for name, seconds in medians.items()},
        "ratio": round(medians["tokenizers"] / medians["colakit data prepare"], 3),
    }
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
