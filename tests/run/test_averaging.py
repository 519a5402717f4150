from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.run.sessions import fake_session
from tests.run.small_frames import write_frames
from tests.stages.fakes import Quiet, open_fake
from xfelproc.errors import ConfigError, DataError
from xfelproc.io.sources.masks import to_stack
from xfelproc.run import stage_process
from xfelproc.run.averaging import FrameChoice, average_frames, run_average
from xfelproc.run.frame_session import frame_session
from xfelproc.run.masking import read_average


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    return write_frames(tmp_path_factory.mktemp("frames"))


def choice(frames: tuple[Path, Path, np.ndarray], driver: str = "inline", *overrides: str) -> FrameChoice:
    given = (f"input.geometry={frames[1]}", "execution.fold_size=8", "execution.unit_size=4", *overrides)
    return FrameChoice((str(frames[0]),), given, driver=driver, workers=2)


def test_images(frames: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    out, reporter = tmp_path / "a.h5", Quiet()
    paths = run_average(choice(frames), out, reporter)
    assert [p.name for p in paths] == ["a.h5", "a.png", "a.geom"]
    assert all(p.is_file() for p in paths)
    assert not (tmp_path / "a.h5.parts").exists()
    with h5py.File(out) as file:
        np.testing.assert_allclose(file["mean"][()], frames[2].mean(axis=0) / 10, rtol=1e-5)
        np.testing.assert_allclose(file["sd"][()], frames[2].std(axis=0, ddof=1) / 10, rtol=1e-4)
        np.testing.assert_allclose(file["max"][()], frames[2].max(axis=0) / 10, rtol=1e-5)
        assert file.attrs["unit"] == "photon"
        assert file.attrs["n_frames"] == 40
    assert reporter.frames == 40
    found = read_average(out)
    detector = found.experiment.detector
    np.testing.assert_array_equal(found.average.maximum, to_stack(frames[2].max(axis=0).astype(np.float32), detector) / 10)


def test_raw(frames: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    run_average(choice(frames), out, Quiet(), raw=True)
    with h5py.File(out) as file:
        assert file.attrs["unit"] == "ADU"
        np.testing.assert_allclose(file["mean"][()], frames[2].mean(axis=0), rtol=1e-5)


def test_same_bytes_from_every_driver(frames: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    content = []
    for driver in ("inline", "pool"):
        out = tmp_path / f"{driver}.h5"
        run_average(choice(frames, driver), out, Quiet())
        content.append(out.read_bytes())
    assert content[0] == content[1]


class Stopping(Quiet):
    """Fails after some frames, as Ctrl-C does."""

    def unit(self, frames: int, counts: dict[str, int]) -> None:
        super().unit(frames, counts)
        if self.frames >= 16:
            raise KeyboardInterrupt


def test_goes_on_where_it_was_stopped(frames: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    out, whole = tmp_path / "a.h5", tmp_path / "b.h5"
    with pytest.raises(KeyboardInterrupt):
        run_average(choice(frames), out, Stopping())
    nodes = sorted((tmp_path / "a.h5.parts" / "gather" / "average" / "0").glob("0-*.h5"))
    assert 2 <= len(nodes) < 5
    before = {node: node.stat().st_mtime_ns for node in nodes}
    seen: dict[Path, int] = {}

    class Watching(Quiet):
        def say(self, text: str) -> None:
            seen.update({node: node.stat().st_mtime_ns for node in before if node.exists()})

        unit = lambda self, frames, counts: self.say("")  # noqa: E731

    run_average(choice(frames), out, Watching())
    assert {node: seen[node] for node in before} == before
    run_average(choice(frames), whole, Quiet())
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "a.h5.parts").exists()


def test_hits_of_a_run(tmp_path: Path) -> None:
    words = ["ok", "blank", "ok", "truncated", "blank", "ok", "ok", "blank"]
    with fake_session(tmp_path, words) as session:
        stage_process.run_stage(session)
    config = session.config

    def average(which: str) -> Any:
        picked = FrameChoice((), run=tmp_path / "out", which=which, driver="inline")
        with frame_session(tmp_path / "a.h5", config.execution, picked.finder(config, print), Quiet(), open_fake) as work:
            return average_frames(work, raw=True)

    hits = [n % 7 + 3 for n in (0, 2, 5, 6)]
    found = average("hits")
    assert found.average.n_frames == 4
    assert np.all(found.average.maximum == max(hits))
    np.testing.assert_allclose(found.average.mean, np.mean(hits), rtol=1e-6)
    assert average("blank").average.n_frames == 3
    assert np.all(average("blank").average.maximum == 0)
    with pytest.raises(ConfigError, match="--which wrong: there are hits, indexed, blank"):
        FrameChoice((), run=tmp_path / "out", which="wrong").job()
    with pytest.raises(ConfigError, match="give no files beside it"):
        FrameChoice(("a.h5",), run=tmp_path / "out").job()


def test_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "frames.txt").write_text("truncated truncated")
    reporter, picked = Quiet(), FrameChoice((str(tmp_path / "frames.txt"),), driver="inline")
    config = picked.job()
    with (
        pytest.raises(DataError, match="none of the 2 frames can be read"),
        frame_session(tmp_path / "a.h5", config.execution, picked.finder(config, print), reporter, open_fake) as work,
    ):
        average_frames(work, raw=True)
    assert any("2 of 2 frames cannot be read" in line and "truncated" in line for line in reporter.lines)


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.h5"):
        run_average(FrameChoice(("a.h5",)), tmp_path / "a.txt", Quiet())
    with pytest.raises(ConfigError, match="no frames are named"):
        run_average(FrameChoice(()), tmp_path / "a.h5", Quiet())
    with pytest.raises(ConfigError, match="give it alone"):
        run_average(FrameChoice(("a.h5", "b.toml")), tmp_path / "a.h5", Quiet())
