"""The DMESR trainer: fetches embeddings through the SDK, trains sequential recommenders, exports artefacts."""
