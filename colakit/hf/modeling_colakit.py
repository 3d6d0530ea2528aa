"""`ColakitForCausalLM`: colakit's model behind the interface of `transformers`, in a layer that computes nothing.

An export made with ``--standalone`` carries this file and what it imports of colakit, so that it loads with
``trust_remote_code`` where colakit is not installed.

Shapes: B batch, T time, S tokens with those of the cache, V vocab.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.hub import cached_file

from colakit.hf.configuration_colakit import ColakitConfig
from colakit.model.cache import NoCache
from colakit.model.lm import LM
from colakit.products import use_fastest

WEIGHTS_FILE = "model.safetensors"
_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_UNDERSTOOD = ("_from_auto", "_commit_hash", "trust_remote_code", "adapter_kwargs", "low_cpu_mem_usage")
_USES_SDPA = (None, "sdpa")


class ColakitForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """The `LM` of a `ColakitConfig`. Its state dict has the public, per-projection names, below ``model.``."""

    config_class = ColakitConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012  (transformers' own way of writing it)

    def __init__(self, config: ColakitConfig, *, is_drawn: bool = True) -> None:
        """With `is_drawn` unset the weights are left to who fills them. Raises ValueError for what it has not."""
        super().__init__(config)
        if self.config._attn_implementation not in _USES_SDPA:
            raise ValueError("attn_implementation: this model attends by PyTorch's SDPA alone")
        self.model: LM = LM(config.lm_config())
        self.post_init()  # type: ignore[no-untyped-call]
        if self.model.tok_embed.weight.device.type == "cpu":
            use_fastest()
        if is_drawn and not self.model.tok_embed.weight.is_meta:
            self.model.init_weights(int(torch.randint(2**31, ())))

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the model draws its weights as a whole."""

    @classmethod
    def from_pretrained(  # type: ignore[override]  # fewer options, each of which does something
        cls, pretrained_model_name_or_path: str | Path, *, config: ColakitConfig | None = None, **options: Any
    ) -> Any:  # Any: with output_loading_info, a pair
        """The model of a folder or a repository of the hub, in evaluation mode.

        Of the options of `transformers` it takes ``dtype`` (unset or ``auto``: as saved), ``device_map`` (one device,
        or ``auto``), ``output_loading_info``, those of the hub, and any field of the configuration. Raises ValueError
        for another, OSError where there is no such model or it does not fit its configuration.

        Not `transformers`' own, which fills one parameter after another by name: Q, K and V are stored as one here.
        """
        hub = {name: options.pop(name) for name in _HUB if options.get(name) is not None}
        dtype = options.pop("dtype", None) or options.pop("torch_dtype", None)
        device = _one_device(options.pop("device_map", None))
        with_info = bool(options.pop("output_loading_info", False))
        if config is None:
            config, options = ColakitConfig.from_pretrained(
                pretrained_model_name_or_path, return_unused_kwargs=True, **hub, **options
            )
        unknown = [name for name, value in options.items() if value is not None and name not in _UNDERSTOOD]
        if unknown:
            raise ValueError(f"not options of {cls.__name__}.from_pretrained: {', '.join(sorted(unknown))}")
        tensors = _read_weights(str(pretrained_model_name_or_path), hub)
        if dtype in (None, "auto"):
            dtype = next(iter(tensors.values())).dtype
        with torch.random.fork_rng(devices=[]):  # PyTorch's own modules draw, whatever is made of it
            model = cls(config, is_drawn=False).to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise OSError(
                f"{pretrained_model_name_or_path}: its weights do not fit the configuration beside them. {error}"
            ) from error
        model.config.name_or_path = str(pretrained_model_name_or_path)
        model.to(device).eval()
        if cached_file(
            str(pretrained_model_name_or_path),
            "generation_config.json",
            _raise_exceptions_for_missing_entries=False,
            **hub,
        ):
            model.generation_config = GenerationConfig.from_pretrained(str(pretrained_model_name_or_path), **hub)
        info: dict[str, Any] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
        return (model, info) if with_info else model

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding; it is the head as well where the configuration ties them."""
        return self.model.tok_embed

    def get_output_embeddings(self) -> None:
        """None: nothing that may be tied or resized from outside."""

    def resize_token_embeddings(self, *_args: Any, **_options: Any) -> nn.Embedding:
        """Raises NotImplementedError: a head may be of low rank."""
        raise NotImplementedError("a colakit model keeps the vocabulary it was trained with")

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,  # Any: any of transformers' caches
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """input_ids [B, T] → logits [B, T, V], or of the last `logits_to_keep` alone, and the cache.

        `attention_mask` [B, S] is 0 where a row is padded, on any side. `labels` [B, T] are input_ids, −100 where none
        is to be learnt. Raises ValueError where S is more than the model's context, and for what it has not.
        """
        asked = [
            name for name in ("inputs_embeds", "output_attentions", "output_hidden_states") if _is_set(options, name)
        ]
        if input_ids is None or asked:
            raise ValueError(
                f"this model takes input_ids and gives logits; not for it: {', '.join(asked) or 'no input'}"
            )
        if use_cache is None:
            use_cache = self.config.use_cache and not torch.is_grad_enabled()
        if getattr(past_key_values, "is_compileable", False):
            raise ValueError("this model needs a cache that grows, as DynamicCache does, not one of fixed length")
        if past_key_values is None:
            past_key_values = DynamicCache() if use_cache else NoCache()
        hidden = self._hidden(input_ids, attention_mask, position_ids, past_key_values)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.head(hidden[:, kept])
        loss = None
        if labels is not None:
            shift = {k: options[k] for k in ("num_items_in_batch", "shift_labels", "ignore_index") if k in options}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **shift)
        cache = past_key_values if use_cache else None
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)
        return output.to_tuple() if return_dict is False else output

    def _hidden(self, tokens: Tensor, mask: Tensor | None, positions: Tensor | None, cache: Any) -> Tensor:
        """The last hidden states [B, T, D]."""
        past, n_new = cache.get_seq_length(), tokens.shape[1]
        if past + n_new > self.config.seq_len:
            raise ValueError(f"a context of {self.config.seq_len} tokens cannot hold {past + n_new}")
        if mask is not None:
            if mask.shape != (len(tokens), past + n_new):
                shape = [len(tokens), past + n_new]
                raise ValueError(f"attention_mask must be {shape}, which tells padding, not {list(mask.shape)}")
            if mask.is_floating_point() and not bool(((mask == 0) | (mask == 1)).all()):
                raise ValueError("attention_mask must hold 0 for padding and 1 for what is read")
            mask = mask.bool()
            # Padding behind a text is seen by no token of it.
            is_behind = mask[:, 1:] <= mask[:, :-1] if past == 0 else mask
            mask = None if bool(is_behind.all()) else mask
        if mask is None and positions is None:
            return self.model.hidden(tokens) if isinstance(cache, NoCache) else self.model.extend(tokens, cache)
        return self.model.extend(tokens, cache, mask, positions)


def _read_weights(place: str, hub: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of one file, or of those that an index names. Raises OSError where there are none."""
    index = cached_file(place, f"{WEIGHTS_FILE}.index.json", _raise_exceptions_for_missing_entries=False, **hub)
    whole = cached_file(place, WEIGHTS_FILE, _raise_exceptions_for_missing_entries=index is None, **hub)
    if whole is not None or index is None:
        return load_file(str(whole))
    names = sorted(set(json.loads(Path(index).read_text("utf-8"))["weight_map"].values()))
    return {k: v for name in names for k, v in load_file(str(cached_file(place, name, **hub))).items()}


def _is_set(options: dict[str, Any], name: str) -> bool:
    value = options.get(name)
    return isinstance(value, Tensor) or bool(value)


def _one_device(device_map: Any) -> torch.device:  # Any: transformers takes strings, numbers and dictionaries
    """The device that holds the whole model. Raises ValueError where there are several."""
    if isinstance(device_map, dict):
        if len(devices := set(device_map.values())) != 1:
            raise ValueError("device_map: this model lies on one device")
        device_map = devices.pop()
    if device_map is None:
        return torch.get_default_device()
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device_map)
