"""Continue a prompt by sampling."""

from collections.abc import Sequence

import torch

from colakit.build import Machine
from colakit.evaluate.loss import evaluation_mode
from colakit.model.lm import LM


@torch.no_grad()
def generate(
    model: LM, prompt: Sequence[int], n_tokens: int, machine: Machine, *, n_ids: int, temperature: float, seed: int
) -> list[int]:
    """Sample `n_tokens` ids below `n_ids` after `prompt` (at least one id), each from softmax(logits / temperature).

    The model sees its last seq_len tokens. Every prefix is computed anew: meant for short samples. It ends early where
    the logits are not finite, as a diverged model's are.
    """
    ids = list(prompt)
    generator = torch.Generator().manual_seed(seed)
    with evaluation_mode(model), machine.autocast():
        for _ in range(n_tokens):
            window = torch.tensor([ids[-model.config.seq_len :]], device=machine.device)
            logits = model.head(model.hidden(window)[:, -1])[0, :n_ids].float()
            probabilities = (logits / temperature).softmax(dim=-1).cpu()
            if not probabilities.isfinite().all():
                break
            ids.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    return ids[len(prompt) :]
