"""Paths as users write them in a configuration."""

from pathlib import Path

from colakit.errors import DataError


def user_path(text: str, field: str) -> Path:
    """`text` with ``~`` expanded. Raises DataError, naming `field`, where nobody knows that home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{field} = {text!r}: that home folder is not known. Set HOME, or give a whole path: --set {field}=PATH."
        ) from error
