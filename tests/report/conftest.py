"""Tables as a reader sees them."""

import re

import pytest
from rich.table import Table

from colakit.report.tables import print_table


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Print a table as the commands do, and give its lines with the space between columns made one."""

    def show(table: Table) -> list[str]:
        print_table(table)
        lines = [re.sub(r"\s{2,}", "  ", line.strip()) for line in capsys.readouterr().out.splitlines()]
        return [line for line in lines if line and not set(line) <= set("─ ")]

    return show
