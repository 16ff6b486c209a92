"""The share of a step that matrix products take, and their rate beside the machine's own."""

from __future__ import annotations

import time

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.rows import Row

from .data import full_histories, made_up_sources
from .size import Size
from .steps import Ours, settings

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
_ATTENTION = "aten::_scaled_dot_product"


def machine_rate(side: int) -> float:
    """GFLOP/s of one thread on square float32 matrices, the best of some products."""
    left, right = torch.randn(side, side), torch.randn(side, side)
    seconds = []
    for _ in range(6):
        started = time.process_time()
        torch.mm(left, right)
        seconds.append(time.process_time() - started)
    return 2e-9 * side**3 / max(min(seconds), 1e-9)


def measure(size: Size) -> list[Row]:
    """Shares and rates of `none` and `dmesr` at each L, and the machine's rate."""
    rate = machine_rate(size.product)
    rows = [
        Row(
            name="products/machine",
            value=rate,
            unit="GFLOP/s",
            how=f"torch.mm of float32 matrices of {size.product}², one thread, best of 6",
        )
    ]
    for length in size.lengths:
        sequences = full_histories(users=size.users, items=size.items, length=length)
        for method in ("none", "dmesr"):
            sources = made_up_sources(sequences, width=size.widths[0]) if method == "dmesr" else None
            step = Ours(settings(method, size=size, length=length), sequences=sequences, sources=sources)
            rows += _of(step, name=f"{method} L={length}", rate=rate)
    return rows


def _of(step: Ours, *, name: str, rate: float) -> list[Row]:
    step()
    counted = 3
    started = time.process_time()
    for _ in range(counted):
        step()
    seconds = (time.process_time() - started) / counted
    with profile(activities=[ProfilerActivity.CPU], with_flops=True, record_shapes=True) as profiled:
        for _ in range(counted):
            step()
    events = profiled.key_averages()
    every = sum(event.self_cpu_time_total for event in events)
    products = [event for event in events if event.key in _PRODUCTS]
    in_products = sum(event.self_cpu_time_total for event in products) / every
    attention = sum(event.self_cpu_time_total for event in events if event.key.startswith(_ATTENTION)) / every
    gflop = sum(event.flops for event in products) * 1e-9 / counted
    how = f"torch.profiler over {counted} steps of {name}, self CPU time, one thread"
    return [
        Row(
            name=f"products/share {name}",
            value=in_products,
            unit="of the step",
            how=f"{how}; products of Linears, adapters and their gradients; {attention:.0%} more is the fused kernel "
            "of attention, whose products PyTorch does not count",
        ),
        Row(
            name=f"products/rate of the step {name}",
            value=gflop / seconds,
            peer=rate,
            unit="GFLOP/s",
            how=f"{gflop:.3g} GFLOP of a step's products (attention's left out) over {seconds * 1e3:.4g} ms of CPU "
            "time without the profiler; peer: products/machine",
        ),
    ]
