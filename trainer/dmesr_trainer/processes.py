"""Several processes that train one model: one a device, each with its share of every batch (Lightning Fabric, DDP).

The process that was asked to train is the first of them: it validates, writes and tells. The others are started by it,
step with it and end with it, however it ends.
"""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from dmesr_trainer.config import TrainConfig

_HOST = "127.0.0.1"
# Of DDP, by PyTorch's version.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)
_LAST_STEPS = 60.0  # seconds that the others may take to end by themselves


@contextlib.contextmanager
def fabrics(config: TrainConfig, *, work: Callable[..., None], arguments: dict[str, Any]) -> Iterator[Fabric]:
    """The Fabric of this process; the others run `work(fabric, **arguments)` meanwhile.

    Args:
        config: Device, precision and how many devices.
        work: A function of a module, so that a new process finds it.
        arguments: What it takes beside its Fabric.

    Raises:
        ValueError: The devices that are asked for are not there.
    """
    accelerator = _accelerator(config)
    if config.devices == 1:
        yield Fabric(accelerator=accelerator, devices=1, precision=config.precision)
        return
    port = _free_port()
    threads = max(1, torch.get_num_threads() // config.devices)
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(
            target=_other, args=(rank, port, threads, accelerator, config, work, arguments), daemon=True, name=f"{rank}"
        )
        for rank in range(1, config.devices)
    ]
    before = torch.get_num_threads()
    finished = False
    try:
        for other in others:
            other.start()
        if accelerator == "cpu":
            torch.set_num_threads(threads)
        fabric = _joined(0, port, accelerator, config)
        try:
            yield fabric
            finished = True
        except RuntimeError as error:
            ended = next((other for other in others if other.exitcode), None)
            if ended is None:
                raise
            raise RuntimeError(
                f"process {ended.name} of {config.devices} ended with exit status {ended.exitcode}, so the training "
                "cannot go on; what it said stands above"
            ) from error
    finally:
        for other in others:
            if other.pid is not None:
                other.join(timeout=_LAST_STEPS if finished else 0.0)
                other.terminate()
                other.join()
        _leave()
        torch.set_num_threads(before)


def _other(
    rank: int,
    port: int,
    threads: int,
    accelerator: str,
    config: TrainConfig,
    work: Callable[..., None],
    arguments: dict[str, Any],
) -> None:
    # Ctrl-C goes to all processes of a terminal; the first one decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if accelerator == "cpu":
        torch.set_num_threads(threads)
    work(_joined(rank, port, accelerator, config), **arguments)
    _leave()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _joined(rank: int, port: int, accelerator: str, config: TrainConfig) -> Fabric:
    # Some methods leave parameters out of some steps, and buffers are the catalogue's vectors: too much to send around.
    further: dict[str, Any] = {"find_unused_parameters": True, _SYNC_BUFFERS: False}
    strategy = DDPStrategy(**further)
    fabric = Fabric(
        accelerator=accelerator,
        devices=config.devices,
        strategy=strategy,
        precision=config.precision,
        plugins=[_OneMachine(rank=rank, size=config.devices, port=port)],
    )
    fabric.launch()
    return fabric


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _OneMachine(ClusterEnvironment):
    """Processes that this module starts."""

    def __init__(self, *, rank: int, size: int, port: int) -> None:
        self._rank, self._size, self._port = rank, size, port

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return _HOST

    @property
    def main_port(self) -> int:
        return self._port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._size

    def set_world_size(self, size: int) -> None:
        assert size == self._size

    def global_rank(self) -> int:
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self._rank

    def local_rank(self) -> int:
        return self._rank

    def node_rank(self) -> int:
        return 0


def _accelerator(config: TrainConfig) -> str:
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    match config.device:
        case "auto":
            accelerator = "cuda" if there else "cpu"
        case "cuda" if not there:
            raise ValueError("device 'cuda' was asked for, but PyTorch sees no GPU; use --device cpu or auto")
        case "cpu" | "cuda":
            accelerator = config.device
        case _:
            raise ValueError(f"unknown device {config.device!r}; choose auto, cpu or cuda")
    if config.devices < 1:
        raise ValueError(f"devices is {config.devices}; at least one is needed")
    cores = os.cpu_count() or 1
    if accelerator == "cpu" and config.devices > cores:
        # Before any process is started: each takes some hundred MB.
        raise ValueError(
            f"the training cannot be shared among {config.devices} processes on {cores} cores; "
            f"use --devices {cores} or fewer"
        )
    if accelerator == "cuda" and config.devices > there:
        raise ValueError(
            f"{config.devices} devices were asked for, but PyTorch sees {there} GPUs; use --devices {there}"
        )
    return accelerator


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind((_HOST, 0))
        port: int = listening.getsockname()[1]
        return port
