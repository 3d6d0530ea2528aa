"""Tables 1 to 3: Muon against AdamW, their settings, and the study of batch sizes.

The paper does not say which model Table 3 measures. The commands take `cola-smollm2` and its Muon twin, the smallest.
"""

from colakit.paper import methods
from colakit.paper.claim import AnyClaim, number, words

ADAMW_PRESET, MUON_PRESET = "cola-smollm2", "cola-smollm2-muon"

_TABLE_1_WORDS = (
    ("weight update", "W_t = W_{t-1} − η_t·O_t", "W_t = W_{t-1} − η_t·m_t / (√v_t + ε) − λ·η_t·W_{t-1}"),
    ("optimizer states", "momentum (1x)", "momentum + second moment (2x)"),
    ("memory required", "1× the model's size", "2× the model's size"),
    ("additional compute", "Newton-Schulz iterations", "element-wise operations"),
    ("implicit norm", "spectral (orthogonalisation)", "Max-of-Max (adaptive scaling)"),
    ("treatment of weights", "as matrices", "element by element"),
    ("sensitivity to batch", "high with small batches", "low, more consistent"),
    ("convergence", "faster, lower final loss", "slower, higher final loss"),
)
_DEFINITIONS = frozenset({"weight update", "additional compute", "implicit norm", "treatment of weights"})


def _table_1() -> list[AnyClaim]:
    claims: list[AnyClaim] = []
    presets = {"Muon": MUON_PRESET, "AdamW": ADAMW_PRESET}
    for row, *cells in _TABLE_1_WORDS:
        for (column, preset), cell in zip(presets.items(), cells, strict=True):
            place = ("Table 1", row, column, cell)
            if row == "memory required":
                claims.append(number(*place, "× model size", "optimizer_state", methods.memory(preset)))
            elif row == "optimizer states":
                claims.append(words(*place, methods.memory(preset), quantity="optimizer_state"))
            else:
                claims.append(words(*place, methods.DEFINITION if row in _DEFINITIONS else methods.STATEMENT))
    return claims


_TABLE_2 = (
    ("learning rate", "", "5e-4", "5e-4"),
    ("weight decay", "", "0.01", "0.01"),
    ("β₁ / momentum", "", "0.9", "0.95"),
    ("β₂", "", "0.95", "N/A"),
    ("epsilon", "", "1e-8", "N/A"),
    ("Newton-Schulz iterations", "iterations", "N/A", "5"),
    ("CoLA rank", None, "d/4", "d/4"),
    ("warm-up steps", "steps", "2000", "2000"),
    ("scheduler", None, "cosine", "cosine"),
    ("batch size", None, "variable", "variable"),
)


def _table_2() -> list[AnyClaim]:
    claims: list[AnyClaim] = []
    for row, unit, *cells in _TABLE_2:
        for column, preset, cell in zip(("AdamW", "Muon"), (ADAMW_PRESET, MUON_PRESET), cells, strict=True):
            method = methods.shows(preset)
            if row == "scheduler":
                method = methods.DEFINITION
            elif row == "batch size":
                method = methods.batch_study(preset)
            if cell == "N/A":
                claims.append(words("Table 2", row, column, cell, methods.NOT_PRINTED, quantity="setting"))
            elif unit is None:
                claims.append(words("Table 2", row, column, cell, method, quantity="setting"))
            else:
                claims.append(number("Table 2", row, column, cell, unit, "setting", method))
    return claims


_TABLE_3 = (
    (4, ("42.4", "28.8", "-32%"), ("96", "62"), ("2.83", "2.91", "+2.8%")),
    (8, ("81.6", "61.2", "-25%"), ("97", "68"), ("2.81", "2.85", "+1.4%")),
    (16, ("156.8", "131.2", "-16%"), ("98", "73"), ("2.79", "2.74", "-1.8%")),
    (32, ("300.8", "278.4", "-7%"), ("98", "78"), ("2.76", "2.64", "-4.3%")),
    (64, ("576.0", "588.8", "+2%"), ("97", "83"), ("2.73", "2.53", "-7.3%")),
    (128, ("1113.6", "1228.8", "+10%"), ("96", "86"), ("2.71", "2.45", "-9.6%")),
)


def _table_3() -> list[AnyClaim]:
    claims: list[AnyClaim] = []
    adamw, muon = methods.batch_study(ADAMW_PRESET), methods.batch_study(MUON_PRESET)
    for batch, speed, util, loss in _TABLE_3:
        where = ("Table 3", f"batch {batch}")
        option = f" --set train.batch_size={batch}"
        train_adamw, train_muon = methods.train(ADAMW_PRESET + option), methods.train(MUON_PRESET + option)
        nats = "nats per token"
        claims += [
            number(*where, "batch size", str(batch), "sequences", "batch_size", adamw),
            number(*where, "AdamW examples/s", speed[0], "examples/s", "examples_per_s", adamw),
            number(*where, "Muon examples/s", speed[1], "examples/s", "examples_per_s", muon),
            number(*where, "change of examples/s", speed[2], "%", "change", methods.DERIVED),
            number(*where, "AdamW GPU %", util[0], "%", "gpu_util", adamw),
            number(*where, "Muon GPU %", util[1], "%", "gpu_util", muon),
            number(*where, "AdamW loss at 10k steps", loss[0], nats, "loss", train_adamw),
            number(*where, "Muon loss at 10k steps", loss[1], nats, "loss", train_muon),
            number(*where, "change of loss", loss[2], "%", "change", methods.DERIVED),
        ]
    return claims


TABLES_1_TO_3: tuple[AnyClaim, ...] = (*_table_1(), *_table_2(), *_table_3())
"""Every cell of Tables 1, 2 and 3, row by row."""
