"""The run's lock: a lease with host, process and heartbeat, which a dead holder does not keep."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xfelproc.errors import RunDirectoryError
from xfelproc.io.atomic import discard, output_error, write_atomic

HEARTBEAT = 10.0
EXPIRES = 90.0
"""Seconds after which the lease of a holder on another host is taken to be void."""
LOOK_EVERY = 2.0
"""Seconds between looks at a lock that is waited for."""


def _started(pid: int) -> str:
    """Return when a process of this host started, as the kernel counts: a process number alone may have been given anew."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_alive(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not started or _started(pid) == started


def holder(path: Path) -> dict[str, Any] | None:
    """Return who holds the lock, or None if it is free or its lease is void."""
    try:
        lease: dict[str, Any] = json.loads(path.read_text())
        if lease["host"] == socket.gethostname():
            return lease if _is_alive(int(lease["pid"]), str(lease["started"])) else None
        return lease if time.time() - float(lease["heartbeat"]) < EXPIRES else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        changed = path.stat().st_mtime  # being written, or damaged
        return {"host": "?", "pid": "?", "heartbeat": changed} if time.time() - changed < EXPIRES else None


def _acquire(path: Path, lease: dict[str, Any], patience: float) -> None:
    end = time.monotonic() + patience
    attempts = 0
    while attempts < 20:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            current = holder(path)
            if current is not None and time.monotonic() < end:
                time.sleep(min(LOOK_EVERY, patience))
                continue
            if current is not None:
                since = time.strftime("%H:%M:%S", time.localtime(float(current["heartbeat"])))
                raise RunDirectoryError(
                    f"{path.parent}: another run is at work here (process {current['pid']} on {current['host']}, last heard of "
                    f"at {since}): wait for it, stop it, or choose another --output"
                ) from None
            _remove_void(path)
            attempts += 1
            continue
        except OSError as error:
            raise output_error(error, path) from error
        with os.fdopen(descriptor, "w") as stream:
            json.dump({**lease, "heartbeat": time.time()}, stream)
        return
    raise RunDirectoryError(f"{path}: the lock changes hands all the time: remove it if no run is at work here")


def _remove_void(path: Path) -> None:
    """Take a void lease away. Only one of several contenders gets it by renaming; if what it got is live, it is put back."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if holder(aside) is not None:
        os.link(aside, path)
    discard(aside)


@contextmanager
def run_lock(run: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the run directory; wait up to ``patience`` seconds for a run that holds it.

    Raises
    ------
    RunDirectoryError
        If another run holds it.
    """
    path = run / "lock"
    lease = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "heartbeat": time.time()}
    _acquire(path, lease, patience)
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT):
            try:
                write_atomic(path, json.dumps({**lease, "heartbeat": time.time()}).encode())
            except OSError:
                continue  # a full disk: the next beat may find room, and the holder on this host is known by its process

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        discard(path)
