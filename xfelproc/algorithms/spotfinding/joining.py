"""Spots of a sweep: those of its frames, joined where they go on from frame to frame."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from xfelproc.kernels.joining import cut_chains, link_frames, sum_chains
from xfelproc.models.parameters import Parameters
from xfelproc.models.tables import SpotTable, SweepSpotTable


class JoinSpots(Parameters):
    """Join the spots of consecutive frames, and keep what is a reflection's."""

    slack: Annotated[
        float, Field(gt=0, le=10, description="distance of centres on consecutive frames beyond a quarter of the box, px")
    ] = 1.0
    depth: Annotated[
        float,
        Field(ge=0, le=1, description="two maxima along the sweep are two spots if it is below this part of the lower between"),
    ] = 0.5
    min_snr: Annotated[float, Field(ge=0, description="lowest intensity over its standard deviation, of all frames together")] = 5.0
    max_frames: Annotated[int, Field(ge=1, description="what goes on over more frames is no spot")] = 100

    def join(self, spots: SpotTable, n_frames: int, sweep: int = 0) -> SweepSpotTable:
        """Return the spots of a sweep of ``n_frames``; the ``frame`` of ``spots`` counts its frames from 0.

        A row of the result that was found on one frame only has a variance of z of 1/12 frame².
        """
        order = np.lexsort((spots["slow"], spots["panel"], spots["frame"]))
        rows = spots.select(order)
        frame = rows["frame"].astype(np.int64)
        start = np.searchsorted(frame, np.arange(n_frames + 1)).astype(np.int64)
        following = np.empty(len(rows), dtype=np.int64)
        box = rows["bbox"].astype(np.int32)
        link_frames(start, rows["panel"], rows["fast"], rows["slow"], box, self.slack, following)
        intensity = rows["intensity"].astype(np.float64)
        cut_chains(following, intensity, self.depth)
        sigma = intensity / np.maximum(rows["snr"], 1e-3)
        names = ("fast", "slow", "var_fast", "var_slow")
        columns = np.column_stack([*(rows[n] for n in names), intensity, sigma, rows["peak"], rows["n_pixels"]]).astype(np.float64)
        out, flags = np.empty((len(rows), 12)), np.zeros(len(rows), dtype=np.uint16)
        count = sum_chains(following, frame, columns, rows["flags"], out, flags)
        out, flags = out[:count], flags[:count]
        highest = out[:, 11].astype(np.int64)
        keep = (out[:, 6] >= self.min_snr * out[:, 7]) & (out[:, 10] <= self.max_frames)
        out, flags, highest = out[keep], flags[keep], highest[keep]
        return SweepSpotTable(
            len(out),
            sweep=np.full(len(out), sweep),
            panel=rows["panel"][highest],
            fast=out[:, 0],
            slow=out[:, 1],
            z=out[:, 2],
            var_fast=out[:, 3],
            var_slow=out[:, 4],
            var_z=out[:, 5],
            intensity=out[:, 6],
            sigma=out[:, 7],
            peak=out[:, 8],
            background=rows["background"][highest],
            n_pixels=out[:, 9],
            n_frames=out[:, 10],
            flags=flags,
        )
