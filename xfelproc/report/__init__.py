"""Shards to one self-contained HTML file: `fold` sums them up on the workers, `page` writes.

Nothing is imported here: workers need the fold without the plotting.
"""
