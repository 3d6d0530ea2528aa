"""Where the paper contradicts itself or physics, found by computing over its printed figures.

`find` runs the checks, one module per subject; a check yields a `Contradiction` only where its computation fails.
"""

from colakit.analysis.contradictions.find import contradiction_of, contradictions_of, find_contradictions
from colakit.analysis.contradictions.record import Contradiction

__all__ = ["Contradiction", "contradiction_of", "contradictions_of", "find_contradictions"]
