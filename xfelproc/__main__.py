"""``python -m xfelproc``."""

from __future__ import annotations

from xfelproc.cli.main import main

if __name__ == "__main__":
    main()
