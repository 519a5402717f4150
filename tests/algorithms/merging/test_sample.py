from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.algorithms.merging.synthetic import observe
from xfelproc.algorithms.merging import Merge, Observations, prepare, sample
from xfelproc.algorithms.merging.partiality import observed_variance, resolution_bins
from xfelproc.algorithms.merging.reduction import find_space_group
from xfelproc.algorithms.merging.sample import Beginning, Sample, begin, priorities, starting_scales, with_partiality
from xfelproc.kernels.scaling import wilson_scales

GROUP = find_space_group("P 43 21 2")


@pytest.fixture(scope="module")
def parts() -> list[Observations]:
    tables = [observe(5, 60, draw=i)[0] for i in range(6)]
    return [prepare(table, np.zeros(5, dtype=np.uint8), Merge()) for table in tables]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=5, max_size=5), st.sampled_from([1, 200, 500, 10_000]))
def test_samples_of_parts_make_the_sample_of_all(parts: list[Observations], cuts: list[bool], most: int) -> None:
    """Whatever the order of joining, as long as neighbours are joined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "MAX_OBSERVATIONS", most)
        ones = [Sample.of(part, priorities(i, 5)) for i, part in enumerate(parts)]
        reference = ones[0]
        for one in ones[1:]:
            reference = reference.with_more(one)
        groups = [ones[0]]
        for one, cut in zip(ones[1:], cuts, strict=True):
            if cut:
                groups.append(one)
            else:
                groups[-1] = groups[-1].with_more(one)
        while len(groups) > 1:
            groups[-2:] = [groups[-2].with_more(groups[-1])]
        assert {n: v.tobytes() for n, v in groups[0].arrays().items()} == {n: v.tobytes() for n, v in reference.arrays().items()}
        assert len(reference.observations) == min(1800, -(-most // 60) * 60)


def test_arrays_come_back(parts: list[Observations]) -> None:
    one = Sample.of(parts[0], priorities(3, 5))
    back = Sample.from_arrays(one.arrays())
    assert {n: v.tobytes() for n, v in back.arrays().items()} == {n: v.tobytes() for n, v in one.arrays().items()}
    beginning = begin(one, Merge())
    again = Beginning.from_arrays(beginning.arrays())
    assert all(np.array_equal(v, again.arrays()[n]) for n, v in beginning.arrays().items())


def test_starting_scales_are_wilsons(parts: list[Observations]) -> None:
    """Where the sample is all there is, lattices taken by parts get the scales that all together would."""
    whole = sample.concatenate(parts)
    merge = Merge()
    beginning = begin(Sample.of(whole, priorities(0, 30)), merge)
    kept, partiality = with_partiality(whole, beginning.widths, merge)
    bins = resolution_bins(kept.inverse_d2, 12)
    height = partiality * sample.peak_height(kept.inverse_d2, beginning.widths)
    expected, means = wilson_scales(kept.intensity, observed_variance(kept), height, kept.lattice, bins, 30, 12, 8)
    got = [starting_scales(*with_partiality(part, beginning.widths, merge), beginning) for part in parts]
    assert np.concatenate(got).tobytes() == expected.tobytes()
    assert beginning.shell_means.tobytes() == means.tobytes()


def test_nothing_to_sample() -> None:
    nothing = Sample.of(sample.concatenate([]), np.zeros(0, dtype=np.uint64))
    beginning = begin(nothing, Merge())
    assert beginning.limits.tolist() == [0.0, 0.0]
    assert nothing.with_more(nothing).priority.tolist() == []
