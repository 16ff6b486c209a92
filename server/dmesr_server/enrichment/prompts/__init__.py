"""The prompts of the routes (§3.2.1): text files beside this one, in the project's own words."""

from __future__ import annotations

from .loading import DONE, ROUNDS, SINGLE, Prompts, load

__all__ = ["DONE", "ROUNDS", "SINGLE", "Prompts", "load"]
