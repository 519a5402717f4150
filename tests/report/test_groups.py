"""The report's part about groups."""

from __future__ import annotations

from typing import Any

from xfelproc.report.groups import groups_section

SHELL = {"d_max": 30.0, "d_min": 2.0, "n_pairs": 1234, "r_iso": 0.0456, "cc_iso": 0.98, "amplitude_signal": 2.5, "chi2": 7.5}
SHELL |= {"cc_half": 0.612, "true_difference": 0.05}
MERGED = {"n_observations": 5000, "n_unique": 1300, "completeness": 0.91, "multiplicity": 3.8, "i_over_sigma": 12.0}
MERGED |= {"cc_half": 0.991, "r_split": 0.0789}


def group(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "n_frames": 1000, "n_lattices": 70, "n_lattices_used": 68, **more}


def plot(figure: Any) -> str:
    return f"[{','.join(trace.name for trace in figure.data)}]"


def test_groups_and_their_differences() -> None:
    difference = {"group": "on <1 ps>", "reference": "off", "scaled": True, "log_scale": 0.01, "b_factor": -0.5}
    difference |= {"overall": SHELL, "shells": [SHELL]}
    text = groups_section([group("off", overall=MERGED), group("never")], [difference], plot)
    assert "<td class='text'>off</td><td>1,000</td><td>70</td><td>68</td><td>5,000</td><td>1,300</td><td>91.0</td>" in text
    assert "<td class='text'>never</td><td>1,000</td><td>70</td><td>68</td><td>–</td>" in text
    assert "<h3>on &lt;1 ps&gt; less off</h3>" in text
    assert "Mean (ΔI/σ)² is 7.50 (1 for noise alone), and the differences of the half-sets correlate by 0.612" in text
    assert "a scale of +0.0100 (log) and ΔB of -0.50 Å²" in text
    assert "<td class='text'>30.00-2.00</td><td>1,234</td><td>4.56</td><td>0.9800</td>" in text
    assert "[r_iso,chi2,cc_half,noise]" in text


def test_nothing_without_groups() -> None:
    assert groups_section([], [], plot) == ""
