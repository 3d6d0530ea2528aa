"""What comes after training, timed: evaluation beside training, and generation beside `transformers`' Llama.

    python benchmarks/after_training.py [-p PRESET ...] [--set KEY=VALUE ...] [--batch-sizes 1,16] [--out FILE.json]

Evaluation: tokens per second of scoring over those of a training step, at equal batch. Generation: milliseconds a
token, each with its own cache, by colakit's reader, by `generate()` of the exported model, and by `generate()` of a
LlamaForCausalLM of the same shape, all greedy and of random weights. Everything is interleaved; medians.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from colakit.bench.peers import llama_config
from colakit.bench.random_data import random_batches
from colakit.build import Machine, build_model, lm_config, pick_machine
from colakit.config.load import resolve
from colakit.config.schema import RunConfig
from colakit.evaluate.generate import Reader, with_products_in
from colakit.evaluate.scores import LMScorer
from colakit.hf import ColakitConfig, ColakitForCausalLM
from colakit.host import describe_machine
from colakit.model.lm import LM
from colakit.train.step import TrainStep

PROMPT = 32
SCORED = 3


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-p", "--preset", action="append")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--batch-sizes", default="1,16")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    results: list[dict[str, Any]] = []
    for preset in given.preset or ["original", "cola-smollm2"]:
        config = resolve(preset, sets=given.sets).config
        machine = pick_machine(config)
        found = evaluation(config, machine, given.repeats)
        results.append({"preset": preset, **found})
        sys.stdout.write(
            f"{preset:14} evaluation over training, batch {found['batch_size']}: {found['ratio']:.2f}"
            f"  ({found['eval_tokens_per_s']:,.0f} and {found['train_tokens_per_s']:,.0f} tokens/s; wanted >= 2.5)\n"
        )
        models = build_models(config, machine)
        for batch in map(int, given.batch_sizes.split(",")):
            times = generation(models, config, machine, batch, given.new_tokens, given.repeats)
            results.append({"preset": preset, "batch_size": batch, "ms_per_token": times})
            shown = ", ".join(f"{name} {ms:.2f} ms" for name, ms in times.items())
            over = ", ".join(f"{times['llama'] / times[name]:.2f}" for name in ("reader", "generate"))
            sys.stdout.write(f"{preset:14} generation, batch {batch}: {shown}; faster than Llama by {over}\n")
        sys.stdout.flush()
    if given.out is not None:
        command = " ".join(["python", "benchmarks/after_training.py", *sys.argv[1:]])
        content = {"command": command, "machine": describe_machine().to_dict(), "results": results}
        given.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def evaluation(config: RunConfig, machine: Machine, repeats: int) -> dict[str, Any]:  # Any: JSON values
    """Tokens per second of a training step and of scoring the same batch."""
    model = build_model(config, machine).train()
    step, scorer = TrainStep.of(config, model, machine), LMScorer(model, machine)
    batches = random_batches(config)
    numbers = iter(range(10**6))
    micro_batches = [next(batches) for _ in range(2)]

    def train() -> None:
        step(next(numbers), micro_batches[0])

    def score() -> None:
        scores = [scorer(batch) for _ in range(SCORED) for batch in micro_batches[1]]
        scores[
            -1
        ].nll.sum().item()  # waited for once, as `colakit eval` waits for one batch while the next is on its way

    train_s, score_s = interleaved([train, score], machine, repeats)
    score_s /= SCORED
    tokens = config.train.batch_size * config.model.seq_len
    return {
        "batch_size": config.train.effective_micro_batch_size,
        "train_tokens_per_s": tokens / train_s,
        "eval_tokens_per_s": tokens / score_s,
        "ratio": train_s / score_s,
    }


def build_models(config: RunConfig, machine: Machine) -> tuple[LM, dict[str, Any]]:
    """colakit's model, and by name those of `transformers`: the same one exported, and a Llama of its shape."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    own = build_model(config, machine).eval()
    with machine.device:
        exported = ColakitForCausalLM(ColakitConfig(**vars(lm_config(config.model, "sdpa"))))
        llama = LlamaForCausalLM(llama_config(config.model))
    exported.model.load_state_dict(own.state_dict())
    models = {"generate": exported, "llama": llama}
    for model in models.values():
        model.to(machine.dtype).eval()
    return own if machine.dtype == torch.float32 else with_products_in(own, machine.dtype), models


def generation(
    built: tuple[LM, dict[str, Any]], config: RunConfig, machine: Machine, batch: int, n_new: int, repeats: int
) -> dict[str, float]:
    """Milliseconds a token: the time of `n_new` + 1 tokens less that of the first, over `n_new`."""
    own, models = built
    prompt = torch.randint(config.model.vocab_size, (batch, PROMPT), device=machine.device)

    def read(n: int) -> None:
        reader = Reader(own, machine, max_len=PROMPT + n_new + 1)
        tokens = prompt
        for _ in range(n):
            tokens = reader.read(tokens).argmax(dim=-1, keepdim=True)
            tokens.sum().item()  # as whoever streams them

    def generate(model: Any, n: int) -> None:
        mask = torch.ones_like(prompt)
        lengths = {"min_new_tokens": n, "max_new_tokens": n}
        model.generate(prompt, attention_mask=mask, do_sample=False, pad_token_id=0, use_cache=True, **lengths)

    runs: list[Callable[[], None]] = []
    for n in (1, n_new + 1):
        runs += [lambda n=n: read(n), *(lambda m=m, n=n: generate(m, n) for m in models.values())]
    times = interleaved(runs, machine, repeats)
    names = ["reader", *models]
    return {name: 1e3 * (times[i + 3] - times[i]) / n_new for i, name in enumerate(names)}


def interleaved(runs: list[Callable[[], None]], machine: Machine, repeats: int) -> list[float]:
    """The median seconds of each, one after another in turn, after a turn that does not count."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for run, own in zip(runs, times, strict=True):
            if machine.device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            if machine.device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                own.append(time.perf_counter() - started)
    return [statistics.median(own) for own in times]


if __name__ == "__main__":
    main()
