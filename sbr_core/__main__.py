"""``python -m sbr_core``: the same as ``sbr``."""

from sbr_core.cli import main

if __name__ == "__main__":
    main()
