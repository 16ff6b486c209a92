"""`dmesr-cli experiment`: the paper's tables and figures, and what stands beside them."""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from dmesr.cli.console import Json, as_json, connected, fail, print_json, print_line, print_table, say, settings

from dmesr_trainer.config import BACKBONES, METHODS

if TYPE_CHECKING:
    from dmesr_trainer.experiments.arms import Setup

app = typer.Typer(
    help="Run the paper's experiments: resumable, with statistics, beside the paper's numbers.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The options of every experiment."""

    dataset: Annotated[str, typer.Option(help="One of `dmesr-cli datasets list`.")] = "sample"
    data: Annotated[Path | None, typer.Option(help="The folder of the dataset's files.", metavar="DIR")] = None
    posters: Annotated[Path | None, typer.Option(help="A folder of pictures.", metavar="DIR")] = None
    attributes: Annotated[Path | None, typer.Option(help="Further attributes, JSON lines.", metavar="FILE")] = None
    name: Annotated[
        str | None,
        typer.Option(help="What tables call the dataset; its own name, or its folder's for files, by itself."),
    ] = None
    only_with_picture: Annotated[
        bool,
        typer.Option(
            "--only-with-picture",
            help="Keep only events of items with a picture, as having one tells popularity by itself.",
        ),
    ] = False
    seeds: Annotated[int | None, typer.Option(min=1, help="How many, from 0: 3 by default, 5 for the ablation.")] = None
    budget: Annotated[int, typer.Option(min=1, help="Epochs at most, the same for every method.")] = 100
    minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Wall clock of a run's training at most, the same for every method.")
    ] = None
    patience: Annotated[int, typer.Option(min=1, help="Epochs without a better validation NDCG.")] = 20
    recipe: Annotated[str, typer.Option(help="The embedding recipe: a name or an id.")] = "default"
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Read the vectors anew, instead of those kept by an earlier call.")
    ] = False
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process with one thread.")] = 1
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto"
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[METHOD:]PART.FIELD=VALUE",
            help="A setting of every method, or of one. Repeatable.",
        ),
    ] = None
    cells: Annotated[
        Path, typer.Option(help="Where single runs are kept: what is finished is never run again.", metavar="DIR")
    ] = Path("runs/experiments")
    output: Annotated[
        Path | None,
        typer.Option(help="Where results go; docs/experiments/EXPERIMENT-DATASET by default.", metavar="DIR"),
    ] = None
    only_report: Annotated[
        bool, typer.Option("--only-report", help="Run nothing: write the results of the runs that are finished.")
    ] = False
    server: Annotated[str | None, typer.Option(help="The server. Also DMESR_SERVER_ADDRESS.")] = None
    catalog: Annotated[str | None, typer.Option(help="The catalog. Also DMESR_CATALOG.")] = None


Backbones = Annotated[str, typer.Option(help="Separated by commas.", metavar="NAMES")]
Methods = Annotated[str, typer.Option(help="Separated by commas.", metavar="NAMES")]

_ALL_BACKBONES, _ALL_METHODS = ",".join(BACKBONES), ",".join(METHODS)


def _experiment(function: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """A command of these experiments: with the shared options in place of `shared`, and `--json`."""
    hints = typing.get_type_hints(Shared, include_extras=True)
    offered = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
        for one in fields(Shared)
    ]
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(function, eval_str=True).parameters.values()
        if parameter.name != "shared"
    ]
    json_option = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
    parameters = [*own, *offered, json_option]

    @functools.wraps(function)
    def command(**given: Any) -> None:
        given.pop("json")
        shared = Shared(**{one.name: given.pop(one.name) for one in offered})
        ctx: typer.Context = given["ctx"]
        chosen = settings(ctx)
        chosen.catalog, chosen.server = shared.catalog or chosen.catalog, shared.server or chosen.server
        try:
            result = function(**given, shared=shared)
        except ValueError as error:  # DatasetError among them: what was given does not fit
            fail(str(error))
        except KeyboardInterrupt:
            say("interrupted: finished runs are kept, and the same command goes on from there")
            raise
        _tell(ctx, result)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


@app.command("table2")
@_experiment
def table2(
    ctx: typer.Context, *, shared: Shared, methods: Methods = _ALL_METHODS, backbones: Backbones = _ALL_BACKBONES
) -> dict[str, Any]:
    """Compare all methods on all backbones, beside the paper's Table 2.

    [bold]Examples[/bold]

    $ dmesr-cli experiment table2 --dataset movielens --data DIR --seeds 3

    $ dmesr-cli experiment table2 --dataset sample --methods popularity,none,dmesr --backbones sasrec --budget 10
    """
    from dmesr_trainer.experiments import table2 as experiment
    from dmesr_trainer.experiments.arms import check_names, methods_and_floors

    names, on = _names(methods), _names(backbones)
    methods_and_floors(names)
    check_names(on, BACKBONES, what="backbone")
    return experiment.run(_setup(ctx, shared, experiment="table2", methods=names), methods=names, backbones=on)


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _setup(ctx: typer.Context, shared: Shared, *, experiment: str, methods: list[str], seeds: int = 3) -> Setup:
    from dmesr_trainer.datasets import load
    from dmesr_trainer.experiments.arms import Budget, reads_vectors
    from dmesr_trainer.experiments.opening import Request, setup

    opened = load(shared.dataset, data=shared.data, posters=shared.posters, attributes=shared.attributes)
    folder = shared.data.resolve().name if shared.dataset == "files" and shared.data else ""
    request = Request(
        dataset=opened,
        name=shared.name or folder or opened.name,
        only_with_picture=shared.only_with_picture,
        recipe=shared.recipe,
        catalog=settings(ctx).catalog,
        refresh=shared.refresh,
        budget=Budget(
            epochs=shared.budget,
            patience=shared.patience,
            minutes=shared.minutes,
            seeds=tuple(range(shared.seeds or seeds)),
        ),
        changes=shared.change or (),
        device=shared.device,
        jobs=shared.jobs,
        cells=shared.cells,
        output=shared.output,
        only_report=shared.only_report,
        command=_repeatable(sys.argv[1:]),
    )
    return setup(
        request,
        experiment=experiment,
        needs_vectors=any(map(reads_vectors, methods)),
        connect=lambda: connected(ctx),
    )


# Where files lie and which server answered belong to one machine; what is written down is for others.
_PLACES = {"--data": "DIR", "--posters": "DIR", "--pictures": "DIR", "--attributes": "FILE"}
_OWN = ("--output", "--cells", "--server", "--jobs", "--token", "--ca")


def _repeatable(arguments: Sequence[str]) -> str:
    """The command as somebody else would type it."""
    kept: list[str] = ["dmesr-cli"]
    rest = iter(arguments)
    for one in rest:
        name, separator, value = one.partition("=")
        if name in _OWN or name in _PLACES:
            value = value if separator else next(rest, "")
            kept += [name, _PLACES[name]] if name in _PLACES else []
        elif name not in ("--json", "--refresh", "--only-report", "--tls"):
            kept.append(shlex.quote(one))
    return " ".join(kept)


def _tell(ctx: typer.Context, result: dict[str, Any]) -> None:
    if as_json(ctx):
        print_json(result)
    else:
        print_line(result["title"])
        metrics = list(dict.fromkeys(row["metric"] for row in result["rows"]))
        cells = {(row["group"], row["backbone"], row["method"], row["metric"]): row["mean"] for row in result["rows"]}
        lines = dict.fromkeys(key[:3] for key in cells)
        print_table(
            ["group", "backbone", "method", *(metric.upper() for metric in metrics)],
            [[*key, *(cells.get((*key, metric)) for metric in metrics)] for key in lines],
            right=[metric.upper() for metric in metrics],
        )
        for note in result["notes"]:
            print_line(note)
    for failure in result["failures"]:
        say(f"error: {failure['label']}: {failure['message']}")
    if result["failures"]:
        raise typer.Exit(1)
