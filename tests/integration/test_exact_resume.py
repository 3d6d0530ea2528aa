"""Every preset at smoke size: killed, resumed, compared byte for byte with the undisturbed run."""

import pytest

from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.train.verify import verify_resume


@pytest.mark.slow
@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_resumes_exactly_at_smoke_size(preset: str) -> None:
    proof = verify_resume(resolve(preset, smoke_run=True).config)
    assert proof.is_exact, proof
