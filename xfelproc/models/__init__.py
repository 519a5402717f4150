"""Frozen models and declared tables: the things that flow between the layers."""
