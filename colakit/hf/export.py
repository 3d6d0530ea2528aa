"""A trained model as a folder that `transformers` loads, with its tokenizer and, if wanted, the code that it needs."""

import ast
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from transformers import GenerationConfig
from transformers.utils import CONFIG_NAME

from colakit.build import lm_config
from colakit.errors import RunError
from colakit.hf.configuration_colakit import ColakitConfig
from colakit.hf.modeling_colakit import WEIGHTS_FILE, ColakitForCausalLM
from colakit.hf.quiet import without_a_bar
from colakit.records.base import SCHEMA_VERSION, to_json
from colakit.records.export import ExportRecord
from colakit.train.runs import ORIGIN_FILE, RunFolder
from colakit.train.saved import SavedModel

_CODE = ("colakit.hf.configuration_colakit", "colakit.hf.modeling_colakit")
_AUTO_MAP = {
    "AutoConfig": "configuration_colakit.ColakitConfig",
    "AutoModelForCausalLM": "modeling_colakit.ColakitForCausalLM",
}


def export(saved: SavedModel, out: Path, *, standalone: bool) -> ExportRecord:
    """Write `saved` to the folder `out`, which appears whole or not at all.

    With `standalone`, colakit's own code lies beside it, for `trust_remote_code`. Raises RunError where `out` holds
    something already, or cannot be written.
    """
    with _whole_folder(out) as folder:
        model = hf_model(saved, standalone=standalone)
        with without_a_bar():
            model.save_pretrained(folder, max_shard_size="1TB")  # one file, which every command reads
        # safetensors makes its files readable for their owner alone.
        (folder / WEIGHTS_FILE).chmod((folder / CONFIG_NAME).stat().st_mode)
        write_tokenizer(saved, folder)
        _write_origin(saved, folder)
        if standalone:
            _write_code(folder)
    return ExportRecord(
        folder=str(out),
        model=str(saved.place),
        preset=saved.config.preset,
        step=saved.steps,
        parameters=sum(p.numel() for p in saved.model.parameters()),
        is_standalone=standalone,
        files=tuple(sorted(path.name for path in out.iterdir())),
    )


def hf_model(saved: SavedModel, *, standalone: bool) -> ColakitForCausalLM:
    """`saved` as `transformers` has it, in float32 on the CPU."""
    tokenizer, vocab_size = saved.tokenizer, saved.config.model.vocab_size
    # SDPA runs everywhere; which kernel it takes is the loading machine's choice.
    own = asdict(lm_config(saved.config.model, "sdpa"))
    eot = {"bos_token_id": tokenizer.eot_id, "eos_token_id": tokenizer.eot_id, "pad_token_id": tokenizer.eot_id}
    config = ColakitConfig(**own, **eot, **({"auto_map": dict(_AUTO_MAP)} if standalone else {}))
    model = ColakitForCausalLM(config, is_drawn=False)
    model.model.load_state_dict(saved.model.state_dict())
    # Rows that no token has were never trained, and stand for nothing.
    unused = list(range(tokenizer.n_tokens, vocab_size))
    suppressed = {"suppress_tokens": unused} if unused else {}
    model.generation_config = GenerationConfig(**eot, **suppressed)  # type: ignore[no-untyped-call]
    return model


def write_tokenizer(saved: SavedModel, folder: Path) -> None:
    """The tokenizer, which pads on the left, as generating in batches needs it."""
    saved.tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    config |= {
        "pad_token": saved.tokenizer.eot_token,
        "padding_side": "left",
        "model_max_length": saved.config.model.seq_len,
        "model_input_names": ["input_ids", "attention_mask"],
        "split_special_tokens": True,  # a text that says "<|endoftext|>" is text, as in training
    }
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_origin(saved: SavedModel, folder: Path) -> None:
    origin = {
        "schema": SCHEMA_VERSION,
        "preset": saved.config.preset,
        "steps": saved.steps,
        "tokenizer_fingerprint": saved.tokenizer.text_fingerprint,
        "data_fingerprint": saved.origin.fingerprint if saved.origin is not None else None,
        "run": saved.config.model_dump(),
    }
    (folder / ORIGIN_FILE).write_text(to_json(origin, indent=2) + "\n", encoding="utf-8")
    if saved.origin is not None and saved.origin.counts.is_file():
        shutil.copyfile(saved.origin.counts, RunFolder(folder).data)


def _write_code(folder: Path) -> None:
    """The modules of colakit that `_CODE` needs, side by side: only where they import each other is changed."""
    waiting, done = list(_CODE), set[str]()
    while waiting:
        module = waiting.pop()
        if module in done:
            continue
        done.add(module)
        source = source_of(module)
        waiting += [node.module for node in _imports(source) if node.module is not None]
        flat = re.sub(r"^(\s*)from colakit(?:\.\w+)*\.(\w+) import", r"\1from .\2 import", source, flags=re.MULTILINE)
        (folder / f"{module.rpartition('.')[2]}.py").write_text(flat, encoding="utf-8")
    names = {module.rpartition(".")[2] for module in done}
    assert len(names) == len(done), f"two modules of one name: {sorted(done)}"


def source_of(module: str) -> str:
    """The text of one of colakit's modules."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text("utf-8")


def _imports(source: str) -> Iterator[ast.ImportFrom]:
    """What a module imports of colakit: ``from colakit.… import …``, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "colakit":
            yield node
        assert not (isinstance(node, ast.Import) and any(n.name.split(".")[0] == "colakit" for n in node.names))


def _umask() -> int:
    """What the system leaves out of the permissions of a new folder; a temporary one has none but its owner's."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes `out` once it is whole."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: exists and is not an empty folder. Give another one; nothing was overwritten.")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.absolute().name}.", dir=out.absolute().parent))
        try:
            aside.chmod(0o777 & ~_umask())
            yield aside
            if out.is_dir():
                out.rmdir()
            aside.rename(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror or error}). Give another folder.") from error
