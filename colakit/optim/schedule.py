"""The learning rate as a pure function of the step."""

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, max_steps: int, min_frac: float = 0.0) -> float:
    """Rate of step `step`, counted from 0: linear to `peak` over the warm-up, then a cosine to peak·min_frac.

    The first step has peak/warmup_steps and not 0; the last of `max_steps` stands one step before the cosine's end.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return peak * (min_frac + (1.0 - min_frac) * 0.5 * (1.0 + math.cos(math.pi * progress)))
