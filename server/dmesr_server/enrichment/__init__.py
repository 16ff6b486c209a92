"""Enrichment: items are described by routes (§3.2.1), descriptions and original texts are encoded into vectors."""
