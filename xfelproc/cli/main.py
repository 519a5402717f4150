"""The command ``xfelproc``. What is imported here is imported at every start: keep it small."""

from __future__ import annotations

import os
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from xfelproc.drivers.threads import pin_threads

pin_threads()  # before numpy is imported by anything below

_FIRST_SPEAKS = 10.0
"""Seconds that a failing rank waits: launchers end all ranks with the first that fails, and only the first rank says why."""


def main() -> None:
    """Run the command line and exit."""
    from xfelproc.drivers import mpi

    launch = mpi.launched()
    if launch is not None and launch.rank > 0:  # what there is to say, the first rank says
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            code = _run()
        if code:
            time.sleep(_FIRST_SPEAKS)
    else:
        code = _run()
    mpi.finish(code)
    sys.exit(code)


def _run() -> int:
    """Run the command line; return the exit code, whatever happened."""
    from xfelproc.cli.app import make_app
    from xfelproc.errors import XfelprocError
    from xfelproc.run.signals import EXIT_INTERRUPTED, Interrupted

    try:
        make_app()()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except XfelprocError as error:
        sys.stderr.write(f"xfelproc: {error}\n")
        return error.exit_code
    except (Interrupted, KeyboardInterrupt) as error:
        sys.stderr.write("xfelproc: interrupted; the same command goes on from here\n")
        return error.exit_code if isinstance(error, Interrupted) else EXIT_INTERRUPTED
    except BaseException:  # noqa: BLE001 - a bug; its traceback is printed before other ranks are ended, which may end this one
        traceback.print_exc()
        return 1
    return 0
