"""The DMESR trainer: fetches embeddings through the SDK, trains sequential recommenders, exports artefacts."""

import os

# Threads of OpenMP that spin while they wait for each other stall when the cores are shared: with two threads beside
# other work an epoch took 25 s instead of 1.5 s. The policy is read when PyTorch is loaded, so it is set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
