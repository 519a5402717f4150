"""A session over fake frames, for tests of what works inside a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.stages.fakes import SECTIONS, Quiet, open_fake
from xfelproc.run.config import config_class, make_config
from xfelproc.run.directory import RunDirectory
from xfelproc.run.journal import Journal
from xfelproc.run.plan import make_plan
from xfelproc.run.recipes import make_driver
from xfelproc.run.session import Session
from xfelproc.run.signals import StopFlag


@contextmanager
def fake_session(folder: Path, words: list[str], **execution: Any) -> Iterator[Session]:
    """Give a session in ``folder/out``; frames do what the words say."""
    (folder / "frames.txt").write_text(" ".join(words))
    document = {
        "input": {"files": "frames.txt"},
        "index": {"cell": [10.0, 20.0, 30.0, 90.0, 90.0, 90.0]},
        "execution": {"driver": "inline", "workers": 2, "unit_size": 4, **execution},
    }
    config = make_config(document, folder, config_class(SECTIONS))
    plan = make_plan(config, open_fake)
    directory = RunDirectory(folder / "out")
    directory.create()
    directory.publish(config, plan.manifest)
    journal, driver = Journal(directory.path), make_driver(config.execution, directory.path / "logs")
    try:
        yield Session(directory, config, plan.manifest, plan.experiment, open_fake, driver, journal, Quiet(), StopFlag())
    finally:
        driver.discard()
        journal.close()
