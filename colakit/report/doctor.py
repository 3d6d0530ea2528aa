"""The table of `doctor`."""

from rich.table import Table
from rich.text import Text

from colakit.records.machine import DoctorRecord
from colakit.report.tables import add_name_column, add_text_column, new_table


def doctor_table(record: DoctorRecord) -> Table:
    """A row for each finding, and for each peak."""
    table = new_table("this machine")
    add_name_column(table, "")
    add_name_column(table, "state")
    add_text_column(table, "found")
    add_text_column(table, "advice")
    for finding in record.findings:
        table.add_row(finding.name, finding.state, Text(finding.value), Text(finding.advice or ""))
    for peak in record.peaks:
        reached = f"{peak.matmul_flops_per_s / 1e12:.3g} TFLOP/s, memory {peak.bytes_per_s / 1e9:.3g} GB/s"
        table.add_row(f"peak, {peak.dtype}", "", f"{reached}, measured", "")
    return table
