"""What the tests of the configuration share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from colakit.config.load import resolve
from colakit.errors import ConfigError, Problem


@pytest.fixture
def problems_of() -> Callable[..., dict[str, Problem]]:
    """The problems that `resolve` raises, by field; the preset is `cola` unless named."""

    def problems(*sets: str, preset: str = "cola", **overrides: object) -> dict[str, Problem]:
        with pytest.raises(ConfigError) as caught:
            resolve(preset, sets=sets, **overrides)  # type: ignore[arg-type]  # overrides are resolve's own keywords
        found = {problem.field: problem for problem in caught.value.problems}
        assert len(found) == len(caught.value.problems), "a field is reported twice"
        return found

    return problems


@pytest.fixture
def preset_file(tmp_path: Path) -> Callable[[str], str]:
    """Write a preset file of the given text; its path."""

    def write(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write
