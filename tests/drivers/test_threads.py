from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xfelproc.drivers.inline import InlineDriver

PROGRAM = """
import os
from xfelproc.errors import ConfigError
{first}
from xfelproc.drivers.threads import check_threads, pin_threads
{pin}
import numpy as np
np.ones((300, 300)) @ np.ones((300, 300))
try:
    check_threads()
    print("one")
except ConfigError as error:
    print(error)
print(os.environ.get("NUMBA_NUM_THREADS"))
"""


def run(first: str, pin: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OPENBLAS_NUM_THREADS": "2",
        "NUMBA_NUM_THREADS": "2",
    }
    program = PROGRAM.format(first=first, pin=pin)
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell which libraries are loaded")
@pytest.mark.parametrize("first", ["", "import numpy as np; np.ones((300, 300)) @ np.ones((300, 300))"])
def test_one_thread_whatever_the_environment_says(first: str) -> None:
    assert run(first, "pin_threads()").split() == ["one", "1"]


def test_inline_raises_what_is_raised() -> None:
    driver = InlineDriver()
    assert driver.executor().submit(int, "3").result() == 3
    with pytest.raises(ValueError, match="invalid literal"):
        driver.executor().submit(int, "x")
