"""Recommenders: each method gives item vectors, user vectors, a training loss and an item tower."""
