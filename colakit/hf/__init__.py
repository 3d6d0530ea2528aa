"""colakit's models in `transformers`: importing this makes AutoConfig and AutoModelForCausalLM know them."""

from transformers import AutoConfig, AutoModelForCausalLM

from colakit.hf.configuration_colakit import ColakitConfig as ColakitConfig
from colakit.hf.modeling_colakit import ColakitForCausalLM as ColakitForCausalLM

AutoConfig.register(ColakitConfig.model_type, ColakitConfig, exist_ok=True)
AutoModelForCausalLM.register(ColakitConfig, ColakitForCausalLM, exist_ok=True)
