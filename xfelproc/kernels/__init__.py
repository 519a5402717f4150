"""numba kernels: arrays and scalars in, arrays out."""

from xfelproc.kernels.cache_folders import forget_other_sources

forget_other_sources()
