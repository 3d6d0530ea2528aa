"""What a run came to, from its totals, its last evaluation and a sample of its model."""

from colakit.build import build_model
from colakit.checkpoint.model_file import load_model
from colakit.config.schema import RunConfig
from colakit.data.loader import TrainLoader
from colakit.model.lm import LM
from colakit.optim.combined import CombinedOptimizer
from colakit.parallel.wrap import ShardedReplica
from colakit.records.run import OptimizerPart, RunSummary
from colakit.train.held_out import HeldOut
from colakit.train.runs import RunFolder
from colakit.train.step import TrainStep
from colakit.train.totals import Totals


def summarise(
    config: RunConfig,
    folder: RunFolder,
    totals: Totals,
    *,
    step: TrainStep,
    held_out: HeldOut,
    loader: TrainLoader,
    costs: tuple[OptimizerPart, ...],
    fingerprint: str,
    train_s: float,
    interrupted: bool,
) -> RunSummary:
    """The summary of a run that was evaluated at its last step, and whose model lies in `folder`."""
    final = totals.evaluation
    assert final is not None
    assert totals.first_loss is not None
    assert totals.last_loss is not None
    prompt, sample = held_out.sample(_whole_model(config, folder, step))
    return RunSummary(
        preset=config.preset,
        run_dir=str(folder.root),
        steps=totals.steps,
        interrupted=interrupted,
        first_loss=totals.first_loss,
        last_loss=totals.last_loss,
        val_loss=final.val_loss,
        bits_per_byte=final.bits_per_byte,
        gzip_bits_per_byte=held_out.gzip_bits_per_byte(),
        accuracy=final.accuracy,
        tokens_seen=totals.tokens,
        nan_count=totals.skipped,
        parameters=sum(p.numel() for p in step.model.parameters()),
        processes=step.world.size,
        strategy=config.parallel.strategy if step.world.size > 1 else None,
        train_s=train_s,
        tokens_per_s=totals.tokens / (totals.step_ms / 1000.0),
        data_wait_frac=totals.data_ms / totals.step_ms,
        epochs=loader.epochs(totals.steps),
        optimizer=costs,
        data_fingerprint=fingerprint,
        prompt=prompt,
        sample=sample,
    )


def shared_costs(optimizer: CombinedOptimizer) -> tuple[OptimizerPart, ...]:
    """Of the optimizer's parts; where they are divided, the sums of all shares, in the time of the longest.

    Every process that has a share calls it.
    """
    own, world = optimizer.costs(), optimizer.division.world
    if world.size == 1:
        return own
    found: dict[str, OptimizerPart] = {}
    for part in (part for costs in world.gather(own) for part in costs):
        before = found.get(part.name, OptimizerPart(part.name, 0, 0.0, 0))
        found[part.name] = OptimizerPart(
            part.name, before.parameters + part.parameters, max(before.ms, part.ms), before.flops + part.flops
        )
    return tuple(found.values())


def _whole_model(config: RunConfig, folder: RunFolder, step: TrainStep) -> LM:
    """The trained model, with all of its weights in this process."""
    if not isinstance(step.replica, ShardedReplica):
        return step.model
    whole = build_model(config, step.machine)
    load_model(whole, folder.root)
    return whole
