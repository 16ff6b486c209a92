"""`dmesr-cli demo`: the whole main job on one machine, told as it goes."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Annotated

import dmesr
import typer
from dmesr.cli.console import Json, as_json, fail, print_json

from dmesr_trainer.cli.dataset_options import DatasetOptions, with_dataset_options
from dmesr_trainer.demonstration.server import ServerStartError, running_server
from dmesr_trainer.sequences import Sequences

# What the server extra brings and the trainer extra does not.
_SERVER_NEEDS = ("lancedb", "sqlalchemy", "pydantic_settings", "grpc_health", "sentence_transformers", "onnxruntime")


@with_dataset_options
def demo(
    ctx: typer.Context,
    dataset: Annotated[
        str, typer.Option(help="sample (made on the spot), movielens, files of your own; more by `datasets list`.")
    ] = "sample",
    domain: Annotated[str, typer.Option(help="What an item is, for instance 'board game' (files).")] = "item",
    folder: Annotated[Path, typer.Option(help="Where the store, the runs and the log go.")] = Path("demo-data"),
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Keep that folder for another run.")] = True,
    seed: Annotated[int, typer.Option(help="Of the training runs.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most; for every method.")] = None,
    *,
    options: DatasetOptions,
    json: Json = False,
) -> None:
    """Run the whole main job once: import, enrich, train, publish, recommend.

    It starts a server of its own and stops it at the end. A second run with the same folder describes and encodes
    nothing again.

    [bold]Examples[/bold]

    $ dmesr-cli demo

    $ dmesr-cli demo --dataset movielens --data DIR --posters DIR/movie-posters

    $ dmesr-cli demo --dataset files --data shop --domain "board game" --epochs 20 --json
    """
    missing = [name for name in _SERVER_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        fail(f"the demonstration runs a server, which lacks {missing[0]}: pip install 'dmesr[server,trainer]'", code=2)
    place: Path | None = None
    try:
        chosen = options.open(dataset, domain=domain)
        sequences = Sequences.from_interactions(chosen.interactions())  # before anything is started: it may be wrong
        place = folder / chosen.name
        # Brings PyTorch, which takes seconds: neither help nor a wrong call waits for it. Before the server is there:
        # Ctrl-C in the middle of such an import can end the process without a clean-up.
        from dmesr_trainer.demonstration.run import run

        with running_server(place) as address, dmesr.connect(address) as client:
            report = run(
                client, chosen, sequences=sequences, folder=place, seed=seed, epochs=epochs, speak=not as_json(ctx)
            )
    except (
        ValueError,
        ServerStartError,
        TimeoutError,
    ) as error:  # DatasetError among them: what was given does not fit
        fail(str(error))
    except dmesr.ServerUnavailable as error:
        log = f"; its log is {place / 'server.log'}" if place else ""
        fail(f"the server of the demonstration went away{log} ({error})")
    finally:
        if place is not None and not keep:
            shutil.rmtree(place, ignore_errors=True)
    if as_json(ctx):
        print_json(report)
