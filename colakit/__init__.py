"""colakit: every row of the paper "compact and efficient transformers" (March 2025) as a command."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("colakit")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
