"""Merging: `prepare` each shard's reflections, then `merge` them all."""

from xfelproc.algorithms.merging.merge import MergeResult, merge, merge_observations
from xfelproc.algorithms.merging.observations import Observations, concatenate, from_scaled, half_set, prepare
from xfelproc.algorithms.merging.reduction import holohedral_group
from xfelproc.algorithms.merging.settings import Merge

__all__ = [
    "Merge",
    "MergeResult",
    "Observations",
    "concatenate",
    "from_scaled",
    "half_set",
    "holohedral_group",
    "merge",
    "merge_observations",
    "prepare",
]
