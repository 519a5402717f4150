"""The run's lock: a lease with host, process and heartbeat, which a dead holder does not keep."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xfelproc.errors import RunDirectoryError
from xfelproc.io.atomic import discard, output_error, write_atomic
from xfelproc.run.signals import Interrupted

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


def _process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "token": uuid.uuid4().hex}


@dataclass
class Lease:
    """What the holder of a lock knows of it.

    ``lost`` is set when another process holds the lock: this one was out of touch for so long that its lease was void.
    """

    path: Path
    holder: dict[str, Any] = field(default_factory=_process)
    lost: bool = False

    def content(self) -> bytes:
        """Return what is in the file, with a heartbeat of now."""
        return json.dumps({**self.holder, "heartbeat": time.time()}).encode()

    def create(self) -> None:
        """Make the file.

        Raises
        ------
        FileExistsError
            If there is one, of whomsoever.
        """
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(self.content())

    def renew(self) -> None:
        """Write a heartbeat, unless the lock is another's by now.

        Raises
        ------
        OSError
            If the file cannot be read or written.
        """
        try:
            found = json.loads(self.path.read_text())
        except FileNotFoundError:
            self.create()
            return
        except ValueError:
            return  # another one has begun to write it: the next look tells
        if found.get("token") == self.holder["token"]:
            write_atomic(self.path, self.content())
        else:
            self.lost = True

    def release(self) -> None:
        """Remove the file if it is this holder's."""
        try:
            mine = json.loads(self.path.read_text()).get("token") == self.holder["token"]
        except (OSError, ValueError):
            return
        if mine:
            discard(self.path)

    def check(self) -> None:
        """See that the lock was not lost.

        Raises
        ------
        RunDirectoryError
            If it was.
        """
        if self.lost:
            raise RunDirectoryError(
                f"{self.path.parent}: this run was out of touch for more than {EXPIRES:.0f} s (was it suspended?) and another one "
                "has taken its place: it stops here, and the other one goes on"
            )


def _acquire(lease: Lease, patience: float) -> None:
    path, end = lease.path, time.monotonic() + patience
    attempts = 0
    while attempts < 20:
        try:
            lease.create()
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
def run_lock(run: Path, patience: float = 0.0, on_lost: Callable[[], None] = lambda: None) -> Iterator[Lease]:
    """Hold the run directory; wait up to ``patience`` seconds for a run that holds it.

    ``on_lost`` is called, by another thread, when a process on another host has taken the lock, as it may after 90 s without a
    heartbeat. The block is to end then, by `Interrupted` or by itself.

    Raises
    ------
    RunDirectoryError
        If another run holds it, or took it.
    """
    lease = Lease(run / "lock")
    _acquire(lease, patience)
    done = threading.Event()

    def beat() -> None:
        while not lease.lost and not done.wait(HEARTBEAT):
            try:
                lease.renew()
            except OSError:
                continue  # a full disk: the next beat may find room, and the holder on this host is known by its process
        if lease.lost:
            on_lost()

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield lease
        lease.check()
    except Interrupted:
        lease.check()
        raise
    finally:
        done.set()
        thread.join()
        lease.release()
