"""``python -m colakit`` is ``colakit``."""

from colakit.cli.app import main

if __name__ == "__main__":
    main()
