"""How true the statistics of merged intensities are, on data that follow Wilson's: python benchmarks/intensities.py

Each line is a mean over seeds; an error in σ is its root mean square over the stated standard deviation (1 is true).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from tests.algorithms.downstream.wilson_data import Simulated, simulated
from xfelproc.algorithms.downstream.analysis import Analysis, analyse
from xfelproc.models.tables import AmplitudeTable

TRIGONAL, ORTHORHOMBIC, MONOCLINIC = (80, 80, 70, 90, 90, 120), (60, 70, 80, 90, 90, 90), (60, 70, 65, 90, 105, 90)
SEEDS = range(8)


def analysed(data: Simulated) -> tuple[AmplitudeTable, Analysis]:
    return analyse(data.merged, data.cell, data.group)


def rms(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def wilson() -> None:
    for b_factor, noise in ((10.0, 0.05), (30.0, 0.05), (60.0, 0.05), (30.0, 0.5)):
        plots = []
        for seed in SEEDS:
            plot = analysed(simulated(ORTHORHOMBIC, "P 21 21 21", 2.0, b_factor, noise=noise, seed=seed))[1].wilson
            assert plot is not None
            plots.append(plot)
        errors = [p.b_factor - b_factor for p in plots]
        ratio = rms([e / p.b_sigma for e, p in zip(errors, plots, strict=True)])
        mean = b_factor + np.mean(errors)
        print(f"B {b_factor:4.0f} Å², noise {noise:4.2f}: found {mean:6.2f}, rms {rms(errors):5.2f} Å², in σ {ratio:.2f}")


def twins() -> None:
    for fraction in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5):
        rows = []
        for seed in SEEDS:
            found = analysed(simulated(TRIGONAL, "P 3", 2.5, twin=(1, fraction), seed=seed))[1]
            law, test = found.twin_laws[1], found.l_test
            assert law.britton is not None
            assert law.h_test is not None
            assert law.moments is not None
            assert test is not None
            rows.append([law.britton.value, law.h_test.value, law.moments.value, test.mean_abs.value, test.mean_square.value])
        mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0)
        names = ("Britton", "H-test", "moments", "<|L|>", "<L2>")
        shown = ", ".join(f"{n} {m:.3f} ± {s:.3f}" for n, m, s in zip(names, mean, spread, strict=True))
        print(f"twin fraction {fraction:.1f}: {shown}")


def tensors() -> None:
    truth = np.array([[5.0, 0.0, 3.0], [0.0, -8.0, 0.0], [3.0, 0.0, 3.0]])
    errors, ratios = [], []
    for seed in SEEDS:
        found = analysed(simulated(MONOCLINIC, "P 1 21 1", 2.2, delta_b=truth, noise=0.05, seed=seed))[1].anisotropy
        assert found is not None
        free = found.tensor_sigma > 1e-6
        errors.append((found.tensor - truth)[free])
        ratios.append((found.tensor - truth)[free] / found.tensor_sigma[free])
    print(f"anisotropic B: rms error {rms(np.concatenate(errors)):.2f} Å², in σ {rms(np.concatenate(ratios)):.2f}")


def amplitudes() -> None:
    for noise in (0.02, 0.2, 1.0):
        pulls, weak, bias = [], [], []
        for seed in SEEDS:
            data = simulated(ORTHORHOMBIC, "P 21 21 21", 2.4, noise=noise, seed=seed)
            table, _ = analysed(data)
            pull = (table["amplitude"] - np.sqrt(data.truth)) / table["sigma"]
            pulls.append(pull[np.isfinite(pull)])
            weak.append(pull[np.isfinite(pull) & (data.merged["intensity"] < 0)])
            bias.append(np.nansum(table["amplitude"]) / np.sum(np.sqrt(data.truth)[np.isfinite(pull)]) - 1.0)
        every, negative = np.concatenate(pulls), np.concatenate(weak)
        shares = f"{len(negative) // len(SEEDS)} of {len(every) // len(SEEDS)}"
        print(
            f"amplitudes, noise {noise:4.2f}: mean (F - F_true)/σ {every.mean():+.3f}, its rms {rms(every):.3f}, of negative I"
            f" {negative.mean():+.3f}, {rms(negative):.3f} ({shares}), ΣF off by {100 * np.mean(bias):+.2f} %"
        )


def speed() -> None:
    data = simulated(TRIGONAL, "P 3", 1.3)
    analysed(simulated(TRIGONAL, "P 3", 4.0))
    begin = time.process_time()
    analysed(data)
    print(f"{len(data.merged)} reflections analysed in {time.process_time() - begin:.2f} s CPU")


if __name__ == "__main__":
    wilson()
    twins()
    tensors()
    amplitudes()
    speed()
