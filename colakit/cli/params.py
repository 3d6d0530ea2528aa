"""``colakit params``: how many parameters each preset has, who updates them, and what a step of it holds in memory."""

from dataclasses import replace
from typing import Annotated

import typer

from colakit.analysis.contradictions import contradiction_of
from colakit.analysis.inventory import group_of, parameters
from colakit.analysis.memory import memory_ledger
from colakit.analysis.params import count_params, non_embedding_params, total_params
from colakit.cli import options
from colakit.cli.shared import MEASURED_BY_BENCH, refuse_idle
from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.config.schema import ModelConfig, RunConfig
from colakit.paper.claims import claim
from colakit.records.analysis import ParamClaim, ParamRecord, RoutedParam
from colakit.report.figures import check_figure, stacked_bars
from colakit.report.params import memory_table, params_notes, params_table, routing_table, summary_table
from colakit.report.tables import print_json, print_note, print_table

_MILLION = 1e6

_COUNTED_AS = {"cola-m": "cola-smollm2", "cola-fan-atf": "cola-fan"}
"""Presets without a row of their own: CoLA-M (§5.5) is the same model, and for FANformer the paper prints one count,
whichever way it enters the attention (§2.3.3)."""


def params(
    preset: options.Presets = None,
    routing: Annotated[
        bool, typer.Option("--routing", help="List every parameter and the optimizer that gets it.")
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Add what a training step holds in memory, before any run.")
    ] = False,
    batch_size: options.MemoryBatchSize = None,
    seq_len: options.MemorySeqLen = None,
    smoke: options.Smoke = False,
    sets: options.Sets = None,
    plot: options.Plot = None,
    json: options.Json = False,
) -> None:
    """Count parameters by component, without building a model; one preset in full, several as one table."""
    if not memory and (batch_size is not None or seq_len is not None):
        name = "--batch-size" if batch_size is not None else "--seq-len"
        raise typer.BadParameter("counts for --memory only; add it.", param_hint=name)
    if plot is not None:
        check_figure(plot)
    refuse_idle(sets or [], MEASURED_BY_BENCH)
    sets = [*(sets or []), *_memory_sets(batch_size, seq_len)]
    names = list(dict.fromkeys(preset or preset_names()))
    records = [_count(name, smoke, sets, routing=routing, memory=memory) for name in names]
    if plot is not None:
        counts = ({c.name: c.params / _MILLION for c in record.components} for record in records)
        bars = dict(zip(names, counts, strict=True))  # by what was asked for: a file may bear a preset's name
        stacked_bars(plot, "Parameters", "million parameters", bars)
    if json:
        values = [record.to_dict() for record in records]
        print_json(values[0] if len(values) == 1 else {"presets": values})
        return
    _print(records)


def _memory_sets(batch_size: int | None, seq_len: int | None) -> list[str]:
    sets = []
    if batch_size is not None:  # of one forward pass, so one micro-batch
        sets += [f"train.batch_size={batch_size}", f"train.micro_batch_size={batch_size}"]
    if seq_len is not None:
        sets.append(f"model.seq_len={seq_len}")
    return sets


def _count(name: str, smoke: bool, sets: list[str], *, routing: bool, memory: bool) -> ParamRecord:
    config = resolve(name, smoke_run=smoke, sets=sets).config
    printed, reason = _claim(name, config.model)
    record = ParamRecord(
        preset=config.preset,
        total=total_params(config.model),
        non_embedding=non_embedding_params(config.model),
        components=count_params(config.model),
        claim=printed,
        reason=reason,
    )
    if routing:
        record = replace(record, routing=_routing(config))
    if memory:
        if config.model.attention == "reference":
            rule = "model.attention=reference keeps every tile's weights, which --memory does not count: leave it out."
            raise typer.BadParameter(rule, param_hint="--set")
        record = replace(record, memory=memory_ledger(config))
    return record


def _claim(name: str, model: ModelConfig) -> tuple[ParamClaim | None, str | None]:
    """The paper's figure for the shipped preset `name`, or why there is none to compare with."""
    if name not in preset_names():  # a file may bear a shipped preset's name
        return None, "a preset file of your own"
    if count_params(model) != count_params(resolve(name).config.model):
        return None, "--smoke or --set changed the preset's size"
    printed = claim(_COUNTED_AS.get(name, name), "parameters")
    if printed is None:
        return None, "the paper prints no figure for this preset"
    value = round(printed.value * _MILLION)
    return ParamClaim(value, printed.table, total_params(model) / value - 1.0, contradiction_of(printed)), None


def _routing(config: RunConfig) -> tuple[RoutedParam, ...]:
    muon = config.optim.optimizer == "muon"
    routed = ((p, group_of(p.role, muon=muon)) for p in parameters(config.model))
    return tuple(
        RoutedParam(
            name=p.name,
            role=p.role,
            shape=p.shape,
            matrices=p.matrices,
            optimizer="muon" if group == "muon" else "adamw",
            weight_decay=group != "adamw_plain",
        )
        for p, group in routed
    )


def _print(records: list[ParamRecord]) -> None:
    if len(records) == 1:
        print_table(params_table(records[0]))
    else:
        print_table(summary_table(records))
    for note in params_notes(records):
        print_note(note)
    for record in records:
        if record.routing is not None:
            print_table(routing_table(record.preset, record.routing))
        if record.memory is not None:
            table, notes = memory_table(record.preset, record.memory)
            print_table(table)
            for note in notes:
                print_note(note)
