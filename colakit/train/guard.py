"""Which updates to leave out: those of numbers that are not finite, and, if asked for, of spikes."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

Reason = Literal["not finite", "spike"]

WINDOW = 128
"""Steps that a spike is measured against; half of them must have been seen."""


class Guard:
    """Looks at loss and gradient norm of every step, in order.

    A spike is a loss or norm more than `spikes` standard deviations above the mean of the last `WINDOW` finite steps,
    spikes among them: a level that stays is soon none.
    """

    def __init__(self, spikes: float | None = None) -> None:
        self._spikes = spikes
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self.in_a_row = 0
        """Updates left out since the last one that was made."""

    def judge(self, loss: float, grad_norm: float) -> Reason | None:
        """Why the update of this step is to be left out; None where it is to be made."""
        reason = self._reason(loss, grad_norm)
        if reason != "not finite" and self._spikes is not None:
            self._losses.append(loss)
            self._norms.append(grad_norm)
        self.in_a_row = 0 if reason is None else self.in_a_row + 1
        return reason

    def _reason(self, loss: float, grad_norm: float) -> Reason | None:
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return "not finite"
        if self._is_spike(loss, self._losses) or self._is_spike(grad_norm, self._norms):
            return "spike"
        return None

    def _is_spike(self, value: float, before: deque[float]) -> bool:
        if self._spikes is None or len(before) < WINDOW // 2:
            return False
        deviation = statistics.pstdev(before)
        return deviation > 0.0 and value > statistics.fmean(before) + self._spikes * deviation

    def state_dict(self) -> dict[str, Any]:  # Any: JSON values
        """What it has seen."""
        return {"losses": list(self._losses), "grad_norms": list(self._norms), "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: JSON values
        """Go on from `state`."""
        self._losses = deque(state["losses"], maxlen=WINDOW)
        self._norms = deque(state["grad_norms"], maxlen=WINDOW)
        self.in_a_row = int(state["in_a_row"])
