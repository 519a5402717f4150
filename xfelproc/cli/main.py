"""The command ``xfelproc``. What is imported here is imported at every start: keep it small."""

from __future__ import annotations

import sys

from xfelproc.drivers.threads import pin_threads

pin_threads()  # before numpy is imported by anything below


def main() -> None:
    """Run the command line and exit."""
    from xfelproc.cli.app import make_app
    from xfelproc.errors import XfelprocError
    from xfelproc.run.signals import EXIT_INTERRUPTED, Interrupted

    try:
        make_app()()
    except XfelprocError as error:
        sys.stderr.write(f"xfelproc: {error}\n")
        sys.exit(error.exit_code)
    except (Interrupted, KeyboardInterrupt) as error:
        sys.stderr.write("xfelproc: interrupted; the same command goes on from here\n")
        sys.exit(error.exit_code if isinstance(error, Interrupted) else EXIT_INTERRUPTED)
