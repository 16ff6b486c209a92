"""Fixtures of the trainer's tests."""

from made_up import make_sources, one_thread, sequences, sources

__all__ = ["make_sources", "one_thread", "sequences", "sources"]
