"""``python -m probjepa`` is ``probjepa``."""

from probjepa.cli import main

if __name__ == "__main__":
    main()
