"""The configuration of a run: frozen pydantic models, strict types, unknown keys refused.

This file owns the fields, their defaults and their ranges. Rules that join several fields live in `rules`; presets,
``--set`` and the origin of each value in `load`. Defaults follow the paper's Table 2 and `cola-smollm2`.
"""

from itertools import accumulate
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1, le=2**24)]
Depth = Annotated[int, Field(ge=1, le=1000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]

SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]

DEFAULT_FAN_RATIO = 0.15

_NOT_OFFERED = {
    **dict.fromkeys(("tp", "tensor", "tensor_parallel", "tensor-parallel"), "tensor parallelism"),
    **dict.fromkeys(("pp", "pipeline", "pipeline_parallel", "pipeline-parallel"), "pipeline parallelism"),
}


def _offered(strategy: object) -> object:
    if isinstance(strategy, str) and (name := _NOT_OFFERED.get(strategy.lower())) is not None:
        raise ValueError(
            f"{name} is not offered: Muon orthogonalises whole matrices, and a low rank is too narrow to be cut"
        )
    return strategy


SINGLE = "data"
"""What the only source of a run is called where sources have names."""


class Section(BaseModel):
    """Base of the sections: immutable, strict, no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelConfig(Section):
    """The transformer: sizes, and which variant of each part."""

    d_model: Size = Field(768, description="width of the residual stream")
    n_layers: Depth = Field(12, description="number of blocks")
    n_heads: Size = Field(12, description="query heads")
    n_kv_heads: Size = Field(6, description="key and value heads, each shared by n_heads / n_kv_heads query heads")
    d_ff: Size = Field(2048, description="inner width of the SwiGLU feed-forward")
    vocab_size: Annotated[int, Field(ge=2, le=2**24)] = Field(49_152, description="rows of the embedding")
    seq_len: Size = Field(1024, description="tokens per sequence")
    rope_theta: PositiveFloat = Field(10_000.0, description="base of the rotary position angles")
    linear: Literal["dense", "cola"] = Field("cola", description="projections: full matrices, or B·gelu(A·x)")
    rank: Size | None = Field(None, description="low-rank width of every CoLA layer; unset: d_in // 4 per layer")
    fan: Literal["none", "qkv", "input"] = Field(
        "none",
        description="Fourier features: inside Q, K and V (CoLA_FAN), or one FAN layer before them (ATF)",
    )
    fan_ratio: Annotated[float, Field(ge=0.0, lt=0.5)] = Field(
        DEFAULT_FAN_RATIO,
        description="share p of the output width for each of cos and sin; used where fan is not none",
    )
    norm: Literal["pre", "post", "hybrid", "listing"] = Field(
        "hybrid", description="norm placement: eq. 1, eq. 2, eq. 3–7, or the block listed in §2.1.1"
    )
    qkv_norm: Literal["rms", "l2", "none"] | None = Field(
        None, description="norm of Q, K, V per head; unset: rms for hybrid and listing, none for pre and post"
    )
    norm_eps: PositiveFloat = Field(1e-8, description="epsilon of every RMSNorm")
    fan_dropout: Probability = Field(0.0, description="dropout inside both branches of CoLA_FAN, at depth 0")
    fan_dropout_growth: NonNegativeFloat = Field(
        0.0, description="the dropout at depth i is fan_dropout · (1 + fan_dropout_growth · i)"
    )
    post_attention_dropout: Probability = Field(0.0, description="dropout after the attention's output projection")
    final_dropout: Probability = Field(0.0, description="dropout after the final norm")
    attention_dropout: Probability = Field(0.0, description="dropout of the attention weights, inside the kernel")
    attention: Literal["auto", "flash", "sdpa", "reference"] = Field(
        "auto", description="attention backend; auto: flash-attn on CUDA where installed, else PyTorch's SDPA"
    )
    tie_embeddings: bool = Field(False, description="the output projection is the embedding matrix")
    remat: Literal["none", "cola_m"] = Field(
        "none",
        description="cola_m: keep only the rank-r activations for the backward pass, recompute the rest",
    )

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads

    @property
    def kv_width(self) -> int:
        """Width of K and of V over all their heads."""
        return self.n_kv_heads * self.head_dim

    @property
    def effective_qkv_norm(self) -> Literal["rms", "l2", "none"]:
        """`qkv_norm`, or what `norm` asks for where it is unset: eq. 3 is part of HybridNorm and of the listing."""
        if self.qkv_norm is not None:
            return self.qkv_norm
        return "rms" if self.norm in ("hybrid", "listing") else "none"

    def rank_of(self, d_in: int) -> int:
        """Rank of a CoLA layer that reads `d_in` features (§2.2: d_in / 4 unless set)."""
        return self.rank if self.rank is not None else max(1, d_in // 4)


class OptimConfig(Section):
    """The optimizer, Table 2 of the paper."""

    optimizer: Literal["adamw", "muon"] = Field("adamw", description="what updates the matrices; the rest is AdamW's")
    lr: PositiveFloat = Field(5e-4, description="peak learning rate, of both parts")
    weight_decay: NonNegativeFloat = Field(0.01, description="decoupled; not on norms, biases and gates")
    beta1: Probability = Field(0.9, description="AdamW: decay of the first moment")
    beta2: Probability = Field(0.95, description="AdamW: decay of the second moment")
    eps: PositiveFloat = Field(1e-8, description="AdamW: epsilon")
    momentum: Probability = Field(0.95, description="Muon: momentum")
    nesterov: bool = Field(True, description="Muon: look ahead by one more momentum step")
    ns_steps: Annotated[int, Field(ge=1, le=20)] = Field(5, description="Muon: Newton–Schulz iterations")
    ns_coefficients: Annotated[tuple[PositiveFloat, FiniteFloat, FiniteFloat], Field(strict=False)] = Field(
        (3.4445, -4.7750, 2.0315),
        description="Muon: an iteration makes a·s + b·s³ + c·s⁵ of s; written as [a, b, c], three numbers",
    )
    update_scaling: Literal["match_rms_adamw", "original"] = Field(
        "match_rms_adamw", description="Muon: 0.2·√max(rows, columns), or √max(1, rows / columns)"
    )
    warmup_steps: NonNegative = Field(2000, description="linear warm-up; a run shorter than it gets max_steps // 10")
    min_lr_frac: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0, description="floor of the cosine, as a share of lr"
    )
    grad_clip: PositiveFloat = Field(1.0, description="largest global gradient norm")


class SourceConfig(Section):
    """Where documents come from."""

    source: Literal["stdlib", "files", "hub"] = Field(
        "stdlib", description="the running Python's own library, local files, or a Hugging Face dataset"
    )
    path: str | None = Field(None, description="files: a file, folder or glob of .txt, .jsonl(.gz, .zst), .parquet")
    dataset: str | None = Field(None, description="hub: the dataset's name")
    dataset_config: str | None = Field(None, description="hub: the dataset's configuration")
    dataset_split: str = Field("train", description="hub: the dataset's split")
    text_field: Annotated[str, Field(min_length=1)] = Field(
        "text", description="which key or column of JSONL, parquet and hub records holds the text"
    )
    part: Annotated[str, Field(pattern=r"^[1-9]\d{0,8}/[1-9]\d{0,8}$")] | None = Field(
        None, description="read one part of the documents, chosen by hash: 1/3 is the first of three; unset: all"
    )
    max_mb: PositiveFloat | None = Field(
        None, description="read no further than this much text, in 10⁶ UTF-8 bytes; unset: all of it"
    )
    streaming: bool = Field(
        False, description="hub: tokenise documents as they come over the network, without keeping the download"
    )


class StageConfig(Section):
    """A stretch of training with one mixture."""

    until_tokens: Positive | None = Field(
        None, description="the stage ends with the block that reaches these tokens, seq_len a block"
    )
    until_frac: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None, description="the stage ends at this share of the run's blocks"
    )
    weights: Annotated[dict[str, PositiveFloat], Field(min_length=1)] = Field(
        description="share of each source, in blocks; they need not sum to 1"
    )


class DataConfig(SourceConfig):
    """Where text comes from, in which proportions, and what cuts it into tokens.

    Either one source, whose fields stand here, or several under names in ``sources``, mixed by ``stages``.
    """

    sources: dict[SourceName, SourceConfig] = Field({}, description="several sources by name, in place of one")
    stages: Annotated[tuple[StageConfig, ...], Field(strict=False)] = Field(
        (), description="mixtures of the named sources, one after another"
    )
    tokenizer: str = Field(
        "bpe",
        description="bpe: a byte-level BPE trained on the source; else a hub name, folder or tokenizer.json",
    )
    remove_urls: bool = Field(False, description="take web addresses out of the text")
    remove_crawl_markers: bool = Field(False, description="take out lines that are a web page's menus and notices")
    min_words: NonNegative = Field(0, description="leave out documents of fewer words")
    max_document_mb: Annotated[float, Field(ge=0.001, le=1024.0)] = Field(
        8.0, description="longer documents are tokenised in pieces, cut at white space"
    )
    on_bad_record: Literal["fail", "skip"] = Field(
        "fail", description="what a line or record that cannot be read does: end the run, or be counted and listed"
    )
    packing: Literal["pack", "pad"] = Field(
        "pack", description="pack: documents joined and cut into blocks; pad: one document per block, cut or padded"
    )
    attend_across_documents: bool = Field(
        True,
        description="documents packed into one sequence see each other; "
        "false: each is attended to by itself, positions restarting",
    )
    val_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.01, description="share of documents held out")
    cache_dir: str | None = Field(
        None, description="prepared data and trained tokenizers; unset: the user's cache folder"
    )

    @property
    def mixture(self) -> dict[str, SourceConfig]:
        """Every source under its name; a single one is called `SINGLE`."""
        return self.sources or {
            SINGLE: SourceConfig(**{name: getattr(self, name) for name in SourceConfig.model_fields})
        }

    @property
    def isolates_documents(self) -> bool:
        """Whether documents of one sequence shall not see each other."""
        return self.packing == "pack" and not self.attend_across_documents

    @property
    def mixture_stages(self) -> tuple[StageConfig, ...]:
        """The stages; a single source is one stage without end."""
        return self.stages or (StageConfig(weights={SINGLE: 1.0}),)


class TrainConfig(Section):
    """The length, batches and machine of a run."""

    max_steps: Positive = Field(10_000, description="optimizer steps")
    batch_size: Size = Field(16, description="sequences per optimizer step")
    micro_batch_size: Size | None = Field(
        None, description="most sequences per forward and backward pass; unset: batch_size"
    )
    seed: Seed = Field(0, description="random seed of initialisation, dropout and data order")
    eval_every: Positive = Field(500, description="steps between evaluations; one more at the end")
    eval_tokens: Positive = Field(262_144, description="most held-out tokens per evaluation")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="precision of the products; auto: bfloat16 where the GPU multiplies it natively, else float32",
    )
    compile: Literal[True, False, "auto"] = Field(
        "auto",
        description="torch.compile of the blocks while training, for which the first step waits; auto: on CUDA",
    )
    sample_tokens: NonNegative = Field(64, description="tokens continued from a held-out prompt at the end")
    checkpoint_every: Positive | None = Field(
        None, description="steps between checkpoints, besides those before each evaluation and at the end"
    )
    checkpoint_every_min: PositiveFloat | None = Field(15.0, description="most minutes between checkpoints")
    keep_last: Positive = Field(3, description="newest checkpoints that are kept, besides the best")
    keep_every: Positive | None = Field(None, description="checkpoints of every so many steps are kept for good")
    skip_spikes: PositiveFloat | None = Field(
        None, description="standard deviations above the last 128 steps (64 at least) at which loss or norm skip it"
    )
    max_skipped: Positive = Field(10, description="updates skipped one after another that end the run")
    deterministic: bool = Field(False, description="kernels that give the same bits each time, on CUDA too; slower")
    memory_gib: PositiveFloat | None = Field(
        None, description="on a CPU: most memory of the process, beyond which the run ends with advice (Linux)"
    )

    @property
    def effective_micro_batch_size(self) -> int:
        """Sequences per forward and backward pass: `micro_batch_size` is an upper limit."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size)

    def micro_batch_size_of(self, world_size: int) -> int:
        """The same where the batch is divided among `world_size` processes; their parts are as equal as can be."""
        own = self.batch_size // world_size
        n_parts = -(-own // self.effective_micro_batch_size)
        return -(-own // n_parts)


class ParallelConfig(Section):
    """How several processes share a run; of one process, nothing. How many there are is the launcher's to say."""

    strategy: Annotated[Literal["ddp", "zero1", "fsdp2"], BeforeValidator(_offered)] = Field(
        "ddp",
        description="ddp: everyone holds everything; zero1: the optimizer's state is divided; fsdp2: weights and "
        "gradients too",
    )
    timeout_s: PositiveFloat = Field(600.0, description="a process that others wait for longer than this ends the job")


class RunConfig(Section):
    """Everything that makes a run."""

    preset: str = Field("custom", description="the preset's name, for reports and run folders")
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()

    @property
    def can_compile(self) -> bool:
        """Whether torch.compile takes the blocks: CoLA-M around the kernels of separate documents it leaves alone."""
        return not (self.model.remat == "cola_m" and self.data.isolates_documents)

    @property
    def n_blocks(self) -> int:
        """Sequences the run trains on."""
        return self.train.max_steps * self.train.batch_size

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """The block, counted from the run's first, before which each stage but the last ends.

        Where a stage would end before the one before it, as in a short run, it is empty.
        """
        ends = (
            round(stage.until_frac * self.n_blocks)
            if stage.until_frac is not None
            else -(-(stage.until_tokens or 0) // self.model.seq_len)
            for stage in self.data.stages[:-1]
        )
        return tuple(accumulate(ends, max))
