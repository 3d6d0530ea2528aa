"""The paper's card: what it can do at most, for checks against physics."""

PEAK_TFLOP_PER_S = 165.2
"""RTX 4090, dense bf16 products with float32 accumulation (NVIDIA, Ada GPU Architecture whitepaper, Appendix A)."""

MEMORY_GB = 24.0
"""RTX 4090 (same source)."""

USABLE_FRAC = 0.9
"""Share of the memory that a training process is granted here; the rest is driver, display and fragmentation."""
