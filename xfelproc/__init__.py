"""Bulk processor for serial and rotation crystallography."""

__version__ = "0.1.0"
