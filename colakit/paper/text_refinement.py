"""Figures of the running text, §6: refined regularisation and tied embeddings."""

from colakit.paper import methods
from colakit.paper.claim import AnyClaim, number

_NATS = "nats per token"
_UNTIED, _TIED = "refined, not tied", "refined, tied"
_GRID = ("0.05", "0.07", "0.09", "0.12", "0.15")
_TRAIN, _TRAIN_TIED = methods.train("refined"), methods.train("refined-tied")
_BOTH = methods.train_both("refined", "refined-tied")

TEXT_REFINEMENT: tuple[AnyClaim, ...] = (
    number("§6.1.1", "RMSNorm epsilon", "before", "1e-8", "", "setting", methods.shows("cola-fan-dropout-muon")),
    number("§6.1.1", "RMSNorm epsilon", "after", "1e-5", "", "setting", methods.shows("refined"), preset="refined"),
    number(
        *("§6.1.1", "RMSNorm epsilon", "fewer NaN", "18%", "%", "change"),
        methods.train_both("refined", "refined --set model.norm_eps=1e-8"),
        about=True,
    ),
    number(
        *("§6.1.2", "redundant dropouts removed", "forward time saved", "6%", "%", "change"),
        methods.bench_both("refined", "refined --set model.post_attention_dropout=0.05 --set model.final_dropout=0.05"),
        about=True,
    ),
    number(
        *("§6.1.2", "redundant dropouts removed", "deviation of the training loss, lower by", "23%", "%", "change"),
        methods.CURVE,
    ),
    *(
        number(
            *("§6.1.3", "dropout grid", f"value {place}", printed, "", "setting"),
            methods.train(f"refined --set model.fan_dropout={printed}"),
        )
        for place, printed in enumerate(_GRID, 1)
    ),
    number("§6.1.3", "dropout grid", "best", "0.09", "", "setting", methods.shows("refined"), preset="refined"),
    number("§6.1.3", "dropout 0.09", "examples", "200,000", "examples", "examples", methods.BUDGET),
    number("§6.1.3", "earlier models", "examples", "2.5 million", "examples", "examples", methods.BUDGET, value=2.5e6),
    number("§6.1.3", "dropout 0.09", "training accuracy plateau", "0.21", "", "accuracy", methods.CURVE, about=True),
    number("§6.1.3", "dropout 0.09", "plateau reached sooner", "45%", "%", "change", methods.CURVE, about=True),
    number(
        *("§6.1.3", "dropout 0.09", "steps to the plateau, Figure 16", "half", "×", "ratio", methods.CURVE),
        value=0.5,
        about=True,
    ),
    number("§6.1.3", "dropout 0.09", "training loss", "4.29", _NATS, "train_loss", _TRAIN, preset="refined"),
    number(
        *(
            "§6.1.3",
            "dropout 0.09",
            "share of the examples for the same loss",
            "a tenth",
            "×",
            "ratio",
            methods.DERIVED,
        ),
        value=0.1,
        half_step=0.05,
        about=True,
    ),
    number("§6.2.3", _UNTIED, "Params.", "92.2", "M", "parameters", methods.params("refined"), preset="refined"),
    number(
        "§6.2.3", _TIED, "Params.", "82.2", "M", "parameters", methods.params("refined-tied"), preset="refined-tied"
    ),
    number(
        *("§6.2.3", _TIED, "parameters saved", "10.8%", "%", "change"),
        methods.params("refined", "refined-tied"),
        preset="refined-tied",
    ),
    number(
        *("§6.2.3", _TIED, "speed lost", "5%", "%", "change"),
        methods.bench_both("refined", "refined-tied"),
        preset="refined-tied",
        about=True,
    ),
    number(
        *("§6.2.3", _TIED, "fewer examples", "12 times", "×", "ratio", methods.DERIVED),
        preset="refined-tied",
        about=True,
    ),
    number(
        *("§6.2.3", _TIED, "validation accuracy gain, Figure 18", "7%", "%", "change", _BOTH),
        preset="refined-tied",
        about=True,
    ),
    number(
        *("§6.2.3", _TIED, "validation loss, lower by, Figure 19", "5%", "%", "change", _BOTH),
        preset="refined-tied",
        about=True,
    ),
    number("§6.2.4", _TIED, "early phase, up to", "1,000", "steps", "steps", methods.CURVE),
    number("§6.2.4", _TIED, "middle phase, up to", "5,000", "steps", "steps", methods.CURVE),
    number(*("§6.2.4", _TIED, "deviation of the accuracy, lower by", "65%", "%", "change", methods.CURVE), about=True),
    number("§6.2.4", "unrefined", "examples", "2.5 million", "examples", "examples", methods.BUDGET, value=2.5e6),
    number("§6.2.4", "unrefined", "Validation loss", "4.21", _NATS, "val_loss", methods.UNNAMED_RUN),
    number("§6.2.4", _UNTIED, "examples", "208,333", "examples", "examples", methods.shows("refined")),
    number("§6.2.4", _UNTIED, "Validation loss", "4.104", _NATS, "val_loss", _TRAIN, preset="refined"),
    number("§6.2.4", _TIED, "examples", "208,333", "examples", "examples", methods.shows("refined-tied")),
    number("§6.2.4", _TIED, "Validation loss", "4.065", _NATS, "val_loss", _TRAIN_TIED, preset="refined-tied"),
    number("§6.2.5", _TIED, "validation loss, lower by", "1%", "%", "change", _BOTH, preset="refined-tied", about=True),
    number("§6.2.5", _TIED, "share of the examples", "8.3%", "%", "ratio", methods.DERIVED, preset="refined-tied"),
)
"""In the paper's order."""
