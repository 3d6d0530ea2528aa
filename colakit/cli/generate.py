"""``colakit generate``."""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from colakit.cli import options
from colakit.errors import ConfigError, Problem
from colakit.records.generation import GenerationRecord
from colakit.report.runs import visible
from colakit.report.tables import print_json, print_note, stderr_console

if TYPE_CHECKING:
    from colakit.data.tokenizer import Tokenizer


def generate(
    model: options.Model,
    prompt: Annotated[str, typer.Option(help="The text to go on from.", show_default=False)],
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the most probable token.")] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Choose among the so many most probable tokens.", show_default=False)
    ] = None,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Choose among the most probable tokens that reach this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Equal seeds give equal texts.")] = 0,
    json: options.Json = False,
) -> None:
    """Continue a text with a trained model, until it ends it; the text appears as it is made."""
    if temperature == 0.0 and (top_k is not None or top_p < 1.0):
        rule = "the most probable token is taken, whatever --top-k and --top-p"
        raise ConfigError([Problem("--temperature", temperature, rule, "Leave them out, or raise it.")])
    if not prompt:
        raise _of_prompt(prompt, "nothing to go on from", "Give a text; a single space will do.")
    if not _is_text(prompt):
        raise _of_prompt(prompt, "it is not UTF-8", "Give a text in the terminal's encoding.")
    import torch

    from colakit.evaluate.generate import Sampling, with_products_in
    from colakit.evaluate.generate import generate as tokens_after
    from colakit.opening import open_own

    saved = open_own(model, "Its own scripts generate with it.")
    ids, context = saved.tokenizer.encode_batch([prompt])[0], saved.config.model.seq_len
    if not ids:
        raise _of_prompt(prompt, "the model's tokenizer makes no tokens of it", "Give another.")
    if len(ids) > context:
        rule = f"it has {len(ids):,} tokens, and the model reads {context:,}"
        raise _of_prompt(f"{prompt[:40]}…", rule, "Give a shorter one.")
    if saved.machine.dtype != torch.float32:
        with_products_in(saved.model, saved.machine.dtype)
    if len(ids) + max_tokens > context:
        note = f"Behind {context:,} tokens the model sees the last {context:,}, read anew for every token: slower."
        print_note(note, stderr_console())
    stream = _Stream(saved.tokenizer, ids, shows=not json)
    sampling = Sampling(temperature, top_k, top_p, seed)
    started = time.perf_counter()
    found = tokens_after(
        saved.model,
        ids,
        max_tokens,
        saved.machine,
        n_ids=saved.tokenizer.n_tokens,
        sampling=sampling,
        stop=saved.tokenizer.eot_id,
    )
    for token in found:
        stream.add(token)
    record = GenerationRecord(
        model=str(model),
        step=saved.steps,
        prompt=prompt,
        prompt_tokens=len(ids),
        text=stream.finish(),
        tokens=len(stream.ids),
        ended=_ending(stream.ids, max_tokens, saved.tokenizer.eot_id),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        device=str(saved.machine),
        tokens_per_s=len(stream.ids) / (time.perf_counter() - started),
    )
    if json:
        print_json(record.to_dict())
        return
    print_note(
        f"{record.tokens:,} tokens, {record.tokens_per_s:,.0f} tokens/s; ended by {record.ended}.", stderr_console()
    )


def _of_prompt(shown: str, rule: str, fix: str) -> ConfigError:
    return ConfigError([Problem("--prompt", shown, rule, fix)])


def _is_text(prompt: str) -> bool:
    """Whether what the shell gave was characters, and not bytes that are none."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _ending(ids: list[int], max_tokens: int, eot_id: int) -> Literal["end of text", "length", "not finite"]:
    if ids and ids[-1] == eot_id:
        return "end of text"
    return "length" if len(ids) == max_tokens else "not finite"


class _Stream:
    """Text that is shown as far as its characters are whole, behind the prompt."""

    def __init__(self, tokenizer: "Tokenizer", prompt: list[int], *, shows: bool) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._shows = shows
        self._begin = len(tokenizer.decode(prompt))
        self.ids: list[int] = []
        self._shown = 0
        self._show(tokenizer.decode(prompt))

    def add(self, token: int) -> None:
        """Show what `token` adds."""
        self.ids.append(token)
        text = self._text()
        if not text.endswith("\ufffd"):
            self._show(text[self._shown :])
            self._shown = len(text)

    def finish(self) -> str:
        """The whole text behind the prompt."""
        text = self._text()
        self._show(text[self._shown :] + "\n")
        return text

    def _text(self) -> str:
        ids = self.ids[:-1] if self.ids and self.ids[-1] == self._tokenizer.eot_id else self.ids
        return self._tokenizer.decode([*self._prompt, *ids])[self._begin :]

    def _show(self, text: str) -> None:
        if self._shows:
            sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
            sys.stdout.flush()
