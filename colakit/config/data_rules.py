"""Rules of ``[data]``: what a source needs, and stages that can be followed."""

from collections.abc import Iterator
from itertools import pairwise

from colakit.config.findings import Finding, broken
from colakit.config.schema import DataConfig, RunConfig, SourceConfig, StageConfig
from colakit.errors import Problem


def check(config: RunConfig) -> Iterator[Finding]:
    """Yield the broken rules of ``[data]``."""
    data = config.data
    if not data.sources:
        yield from _source("data", data, "Give --data PATH, which sets both, or set data.source=files.")
    for name, source in data.sources.items():
        yield from _source(f"data.sources.{name}", source, 'Add source = "files".', to_name='Add path = "…".')
    untouched = SourceConfig()
    for field in SourceConfig.model_fields:
        yield from broken(
            config,
            bool(data.sources) and getattr(data, field) != getattr(untouched, field),
            f"data.{field}",
            "data.sources is read instead",
            f"Leave data.{field} out, or set it in [data.sources.NAME].",
            "data.sources",
        )
    streams = [name for name, source in data.mixture.items() if source.streaming]
    yield from broken(
        config,
        bool(streams) and data.tokenizer == "bpe",
        "data.tokenizer",
        "bpe reads the text three times over, and a stream would come over the network as often",
        "Name a tokenizer, or leave data.streaming out.",
        "data.streaming",
        "data.sources",
    )
    yield from _mixture(config)


def without_effect(config: RunConfig) -> Iterator[tuple[str, bool, str, str]]:
    """Fields of ``[data]``, whether setting one by hand would have no effect, why, and what to do."""
    data, untouched = config.data, DataConfig()
    no_dataset = f"data.source = {data.source!r} reads no Hugging Face dataset"
    of_one_source = (
        *((name, data.source != "hub", no_dataset, "add --set data.source=hub") for name in _OF_DATASETS),
        ("text_field", data.source == "stdlib", "the standard library has no records", "add --set data.source=files"),
        ("text_field", (data.path or "").endswith(".txt"), "a .txt has no records", "give another data.path"),
    )
    useless = (
        *(of_one_source if not data.sources else ()),
        (
            "attend_across_documents",
            data.packing == "pad",
            "data.packing = 'pad' puts one document into a sequence",
            "add --set data.packing=pack",
        ),
    )
    for name, is_useless, rule, remedy in useless:
        # Setting what holds anyway is no contradiction.
        yield f"data.{name}", is_useless and getattr(data, name) != getattr(untouched, name), rule, remedy
    for name in SourceConfig.model_fields:
        # Who sets what holds anyway wants it read; what does not hold, `check` refuses.
        is_default = getattr(data, name) == getattr(untouched, name)
        yield f"data.{name}", bool(data.sources) and is_default, "data.sources is read instead", _IN_SOURCES


_IN_SOURCES = "set it in [data.sources.NAME]"
_OF_DATASETS = ("dataset", "dataset_config", "dataset_split", "streaming")


def _source(
    place: str, source: SourceConfig, to_read_files: str, *, to_name: str = "Give --data PATH."
) -> Iterator[Finding]:
    kind = source.source
    rules = (
        ("path", kind == "files" and not source.path, f"{place}.source = 'files' needs it", to_name),
        (
            "dataset",
            kind == "hub" and not source.dataset,
            f"{place}.source = 'hub' needs it",
            f"Set {place}.dataset to a Hugging Face dataset's name.",
        ),
        (
            "path",
            kind != "files" and source.path is not None,
            f"{place}.source = {kind!r} does not read it",
            to_read_files,
        ),
        (
            "part",
            not _is_part(source.part),
            "i/n is part i of n, so i is at most n",
            "Write 1/3 for the first of three.",
        ),
    )
    for field, is_broken, rule, fix in rules:
        if is_broken:
            read = (f"{place}.{field}", f"{place}.source", "data.sources")
            yield Problem(f"{place}.{field}", getattr(source, field), rule, fix), read


_LEAST = 1e-6
"""Of a stage's largest weight; less is a slip of the pen."""


def _is_part(part: str | None) -> bool:
    i, _, n = (part or "1/1").partition("/")
    return int(i) <= int(n)


def _mixture(config: RunConfig) -> Iterator[Finding]:
    data = config.data
    used = {name for stage in data.stages for name in stage.weights}
    unknown, idle = sorted(used - data.sources.keys()), sorted(data.sources.keys() - used)
    yield from broken(
        config,
        bool(unknown),
        "data.stages",
        f"no source is called {' or '.join(unknown)}",
        f"Use {', '.join(data.sources)}." if data.sources else "Describe it under [data.sources.NAME].",
        "data.sources",
    )
    yield from broken(
        config,
        bool(idle),
        "data.sources",
        f"no stage reads {' or '.join(idle)}",
        "Give it a weight in one of [[data.stages]], or remove it.",
        "data.stages",
    )
    faint = [
        name
        for stage in data.stages
        for name, weight in stage.weights.items()
        if weight < _LEAST * max(stage.weights.values())
    ]
    yield from broken(
        config,
        bool(faint),
        "data.stages",
        f"{' and '.join(faint)} weighs less than a millionth of another source",
        "Give it more weight, or remove it.",
    )
    yield from _stages(config)


def _stages(config: RunConfig) -> Iterator[Finding]:
    """Each stage but the last has one end, behind that of the stage before."""
    stages = config.data.stages
    wrong = [i for i, stage in enumerate(stages[:-1], 1) if (stage.until_tokens is None) == (stage.until_frac is None)]
    yield from broken(
        config,
        bool(wrong),
        "data.stages",
        f"stage {wrong[0] if wrong else 0} of {len(stages)} needs until_tokens or until_frac, one of them",
        "Say where it ends, once.",
    )
    yield from broken(
        config,
        bool(stages) and (stages[-1].until_tokens or stages[-1].until_frac) is not None,
        "data.stages",
        "the last stage lasts to the end of the run",
        "Leave its until_tokens or until_frac out, or add a stage behind it.",
    )
    if wrong:
        return
    falling = [
        f"stage {i} ends at {two.until_tokens or two.until_frac} and begins at {one.until_tokens or one.until_frac}"
        for i, (one, two) in enumerate(pairwise(stages[:-1]), 2)
        if _ends_before(two, one)
    ]
    yield from broken(
        config,
        bool(falling),
        "data.stages",
        "; ".join(falling),
        "Put them in order.",
    )


def _ends_before(two: StageConfig, one: StageConfig) -> bool:
    """Of two ends told in the same way, so that the length of the run decides nothing."""
    return (one.until_tokens is not None and two.until_tokens is not None and two.until_tokens <= one.until_tokens) or (
        one.until_frac is not None and two.until_frac is not None and two.until_frac <= one.until_frac
    )
