"""``python -m rtloop`` is ``rtloop``."""

from rtloop.tools.cli import main

if __name__ == "__main__":
    main()
