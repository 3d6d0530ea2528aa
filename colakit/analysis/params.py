"""How many parameters a configured model has, by component, in closed form and without building it."""

from colakit.analysis.inventory import Component, parameters
from colakit.config.schema import ModelConfig
from colakit.records.analysis import ComponentParams

COMPONENTS: tuple[Component, ...] = (
    "embedding",
    "q",
    "k",
    "v",
    "o",
    "fan",
    "gate_up",
    "down",
    "norms",
    "gates",
    "head",
)


def count_params(model: ModelConfig) -> tuple[ComponentParams, ...]:
    """Parameters of every component, in the order of `COMPONENTS`; 0 where a model has none of a kind.

    ``fan`` is the extra full-rank layer of ATF alone: CoLA_FAN's matrices are those of q, k and v. A tied head has none
    of its own.
    """
    counts = dict.fromkeys(COMPONENTS, 0)
    for p in parameters(model):
        counts[p.component] += p.size
    total = sum(counts.values())
    return tuple(ComponentParams(component, count, count / total) for component, count in counts.items())


def total_params(model: ModelConfig) -> int:
    """All parameters, a tied matrix counted once."""
    return sum(count.params for count in count_params(model))


def non_embedding_params(model: ModelConfig) -> int:
    """All parameters but the embedding matrix; an output projection of its own stays in."""
    return total_params(model) - model.vocab_size * model.d_model
