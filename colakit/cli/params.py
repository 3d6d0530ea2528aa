"""``colakit params``: how many parameters each preset has, beside the paper's printed figure."""

from dataclasses import dataclass

from colakit.analysis.params import ComponentCount, count_params, non_embedding_params, total_params
from colakit.cli import options
from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.paper.claims import Claim, claim
from colakit.records import ParamRecord
from colakit.report.tables import add_name_column, add_number_column, new_table, print_json, print_note, print_table

_MILLION = 1e6


@dataclass(frozen=True)
class _Counted:
    """One preset's counts, and what the paper prints for it; `printed` is None where it prints nothing comparable."""

    preset: str
    components: tuple[ComponentCount, ...]
    total: int
    non_embedding: int
    printed: Claim | None
    why_unprinted: str | None

    @property
    def deviation_frac(self) -> float | None:
        """The count against the printed figure: 0.01 is 1 % more."""
        return None if self.printed is None else self.total / (self.printed.value * _MILLION) - 1.0

    def millions(self, *components: str) -> str:
        """The sum of `components` in millions, for the summary table."""
        count = sum(c.parameters for c in self.components if c.component in components)
        return f"{count / _MILLION:.2f}" if count else "–"


def params(
    preset: options.Presets = None,
    smoke: options.Smoke = False,
    sets: options.Sets = None,
    json: options.Json = False,
) -> None:
    """Count parameters by component, without building a model; one preset in full, several as one table."""
    counted = [_count(name, smoke, sets or []) for name in preset or preset_names()]
    if json:
        print_json({"models": [_as_json(model) for model in counted]})
        return
    if len(counted) == 1:
        _print_components(counted[0])
    else:
        _print_summary(counted)
    for note in _footnotes(counted):
        print_note(note)


def _count(name: str, smoke: bool, sets: list[str]) -> _Counted:
    config = resolve(name, smoke_run=smoke, sets=sets).config
    components = count_params(config.model)
    printed, why = None, "a preset file of your own"
    if name in preset_names():  # a file may bear a shipped preset's name
        printed, why = claim(name, "parameters"), "the paper prints no figure for this preset"
        if components != count_params(resolve(name).config.model):
            printed, why = None, "--smoke or --set changed the preset's size"
    return _Counted(
        preset=config.preset,
        components=components,
        total=total_params(config.model),
        non_embedding=non_embedding_params(config.model),
        printed=printed,
        why_unprinted=None if printed else why,
    )


def _as_json(model: _Counted) -> dict[str, object]:
    return {
        "preset": model.preset,
        "components": [ParamRecord(model.preset, c.component, c.parameters).to_dict() for c in model.components],
        "total": model.total,
        "non_embedding": model.non_embedding,
        "paper_parameters": None if model.printed is None else round(model.printed.value * _MILLION),
        "paper_table": None if model.printed is None else model.printed.table,
        "deviation_frac": model.deviation_frac,
        "contradiction": None if model.printed is None else model.printed.contradiction,
        "reason": model.why_unprinted,
    }


def _print_components(model: _Counted) -> None:
    table = new_table(f"Parameters of {model.preset}")
    add_name_column(table, "component")
    add_number_column(table, "parameters")
    add_number_column(table, "share")
    for count in model.components:
        share = f"{100 * count.parameters / model.total:.1f} %"
        table.add_row(count.component, f"{count.parameters:,}", share if count.parameters else "–")
    table.add_section()
    table.add_row("total", f"{model.total:,}", "")
    table.add_row("non-embedding", f"{model.non_embedding:,}", "")
    table.add_row("paper's total", _printed(model), _deviation(model))
    print_table(table)


def _print_summary(counted: list[_Counted]) -> None:
    table = new_table("Parameters, in millions")
    add_name_column(table, "preset")
    groups = {
        "embedding": ("embedding",),
        "attention": ("q", "k", "v", "o"),
        "FAN layer": ("fan",),
        "feed-forward": ("gate_up", "down"),
        "norms": ("norms", "gates"),
        "head": ("head",),
    }
    for header in (*groups, "total", "non-emb.", "paper", "deviation"):
        add_number_column(table, header)
    for model in counted:
        cells = [model.millions(*components) for components in groups.values()]
        totals = [f"{n / _MILLION:.2f}" for n in (model.total, model.non_embedding)]
        table.add_row(model.preset, *cells, *totals, _printed(model), _deviation(model))
    print_table(table)


def _printed(model: _Counted) -> str:
    if model.printed is None:
        return "n/a"
    mark = "*" if model.printed.contradiction else ""
    return f"{model.printed.value:g}{model.printed.unit}{mark}"


def _deviation(model: _Counted) -> str:
    return "n/a" if model.deviation_frac is None else f"{100 * model.deviation_frac:+.1f} %"


def _footnotes(counted: list[_Counted]) -> list[str]:
    notes = [
        f"* {model.preset}: the printed figure cannot be met: {model.printed.contradiction}."
        for model in counted
        if model.printed is not None and model.printed.contradiction
    ]
    reasons: dict[str, list[str]] = {}
    for model in counted:
        if model.why_unprinted:
            reasons.setdefault(model.why_unprinted, []).append(model.preset)
    return notes + [f"n/a for {', '.join(names)}: {why}." for why, names in reasons.items()]
