"""``colakit doctor``."""

from colakit.cli import options
from colakit.report.doctor import doctor_table
from colakit.report.tables import print_json, print_table


def doctor(json: options.Json = False) -> None:
    """Say what this machine can do, and what to do about what is missing; takes up to half a minute."""
    from colakit.bench.doctor import examine

    record = examine()
    if json:
        print_json(record.to_dict())
    else:
        print_table(doctor_table(record))
