"""One unit in a process of its own, which may die of it: ``python -m xfelproc.stages.isolated``.

The task comes pickled on standard input, which stays open as long as the dispatcher lives; the summary, or the error, goes
pickled to standard output.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from xfelproc.io.inflight import forgive, forgive_on_sigterm
from xfelproc.stages.execute import UnitTask, execute

LONGEST = 4000
"""Characters of an error's text."""


def main() -> None:
    """Execute one task."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    forgive_on_sigterm()
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what algorithms print must not get between
    task: UnitTask = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_dispatcher, args=(sys.stdin.fileno(),), daemon=True).start()
    # a thread computes, so that whatever is raised comes back as a value
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(execute, task)
        error = future.exception()
    content: tuple[Any, BaseException | None] = (None, error) if error is not None else (future.result(), None)
    answer.write(_pickled(content))
    answer.close()


def _end_with_dispatcher(descriptor: int) -> None:
    while os.read(descriptor, 4096):
        pass
    forgive()
    os._exit(1)


def _pickled(content: tuple[Any, BaseException | None]) -> bytes:
    """Return the answer; an error that does not survive the way as its text."""
    try:
        data = pickle.dumps(content)
        pickle.loads(data)
    except (pickle.PicklingError, TypeError, AttributeError):
        data = b""
    if data and len(data) < 10 * LONGEST:
        return data
    error = content[1]
    return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"[:LONGEST])))


if __name__ == "__main__":
    main()
