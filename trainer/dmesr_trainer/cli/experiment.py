"""`dmesr-cli experiment`: the paper's tables and figures, and what stands beside them."""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from dmesr.cli.console import Json, as_json, connected, fail, print_json, print_line, print_table, say, settings

from dmesr_trainer.cli.dataset_options import DatasetOptions, with_dataset_options
from dmesr_trainer.config import BACKBONES, METHODS

if TYPE_CHECKING:
    from dmesr_trainer.experiments.arms import Setup
    from dmesr_trainer.experiments.opening import Request

app = typer.Typer(
    help="Run the paper's experiments: resumable, with statistics, beside the paper's numbers.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The options of every experiment."""

    dataset: Annotated[str, typer.Option(help="One of `dmesr-cli datasets list`.")] = "sample"
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
    budget: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs at most, the same for every method; what the backbone needs by itself."),
    ] = None
    minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Wall clock of a run's training at most, the same for every method.")
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Epochs without a better validation NDCG, alike for every method; what the backbone needs by itself.",
        ),
    ] = None
    paper_settings: Annotated[
        bool,
        typer.Option(
            "--paper-settings",
            help="Width, batch size, patience and temperature of the paper (§4.1.3) for every method; dmesr-paper has "
            "them in any case, but for the patience.",
        ),
    ] = False
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
    runs_from: Annotated[
        list[Path] | None,
        typer.Option(
            help="Take runs, and trials of a search, from an earlier experiment's folder where data, vectors and every "
            "setting are equal. Repeatable.",
            metavar="DIR",
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(help="Where results go; docs/experiments/EXPERIMENT-DATASET by default.", metavar="DIR"),
    ] = None
    only_report: Annotated[
        bool, typer.Option("--only-report", help="Run nothing: write the results of the runs that are finished.")
    ] = False
    server: Annotated[str | None, typer.Option(help="The server. Also DMESR_SERVER_ADDRESS.")] = None
    catalog: Annotated[str | None, typer.Option(help="The catalog. Also DMESR_CATALOG.")] = None
    options: DatasetOptions = field(default_factory=DatasetOptions)


Backbones = Annotated[str, typer.Option(help="Separated by commas.", metavar="NAMES")]
Methods = Annotated[str, typer.Option(help="Separated by commas.", metavar="NAMES")]

_ALL_BACKBONES, _ALL_METHODS = ",".join(BACKBONES), ",".join(METHODS)


def _experiment(function: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """A command of these experiments: its own options, those of datasets, the shared ones and `--json`."""
    hints = typing.get_type_hints(Shared, include_extras=True)
    offered = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
        for one in fields(Shared)
        if one.name != "options"
    ]
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(function, eval_str=True).parameters.values()
        if parameter.name != "shared"
    ]
    json_option = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
    options = inspect.Parameter("options", inspect.Parameter.KEYWORD_ONLY, annotation=DatasetOptions)
    parameters = [*own, options, *offered, json_option]

    @functools.wraps(function)
    def command(**given: Any) -> None:
        given.pop("json")
        shared = Shared(**{one.name: given.pop(one.name) for one in offered}, options=given.pop("options"))
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
    return with_dataset_options(command)


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

    names, on = _methods(methods), _backbones(backbones)
    return experiment.run(_setup(ctx, shared, experiment="table2", methods=names), methods=names, backbones=on)


@app.command("ablation")
@_experiment
def ablation(
    ctx: typer.Context,
    *,
    shared: Shared,
    backbones: Backbones = _ALL_BACKBONES,
    groups: Annotated[
        str,
        typer.Option(
            help="parts: the paper's four; additions: each of ours taken back; steps: from the paper's recipe to ours; "
            "forms: other forms of the cross-attention; leak: without its causal mask, to show what that does.",
            metavar="NAMES",
        ),
    ] = "parts,additions,steps",
) -> dict[str, Any]:
    """Leave out each part of DMESR, beside the paper's Table 3, and each addition to the paper's recipe.

    [bold]Examples[/bold]

    $ dmesr-cli experiment ablation --dataset movielens --data DIR --backbones sasrec --jobs 2
    """
    from dmesr_trainer.experiments import ablation as experiment
    from dmesr_trainer.experiments.arms import WHOLE, check_names

    on, chosen = _backbones(backbones), _names(groups)
    check_names(chosen, experiment.GROUPS, what="group of rows")  # before a server is asked for anything
    setup = _setup(ctx, shared, experiment="ablation", methods=[WHOLE], seeds=5)
    return experiment.run(setup, backbones=on, groups=chosen)


@app.command("longtail")
@_experiment
def longtail(
    ctx: typer.Context,
    *,
    shared: Shared,
    methods: Methods = _ALL_METHODS,
    backbones: Backbones = _ALL_BACKBONES,
    new_item_folds: Annotated[
        int,
        typer.Option(min=0, help="Parts that the items are cut into for new items, left out in turn; 0 for none."),
    ] = 5,
    new_item_seeds: Annotated[int, typer.Option(min=1, help="Training seeds for new items, of --seeds.")] = 1,
    new_item_epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs at most for new items, alike for every method; --budget's if none."),
    ] = None,
) -> dict[str, Any]:
    """Look at the long tail, as the paper's Figure 2 does, and at items that training never saw.

    [bold]Examples[/bold]

    $ dmesr-cli experiment longtail --dataset movielens --data DIR --methods none,dmesr --backbones sasrec
    """
    from dmesr_trainer.experiments import longtail as experiment

    names, on = _methods(methods), _backbones(backbones)
    setup = _setup(ctx, shared, experiment="longtail", methods=names)
    new = experiment.NewItems(folds=new_item_folds, seeds=new_item_seeds, epochs=new_item_epochs)
    return experiment.run(setup, methods=names, backbones=on, new_items=new)


@app.command("sweep")
@_experiment
def sweep(
    ctx: typer.Context,
    *,
    shared: Shared,
    methods: Methods = "dmesr",
    backbones: Backbones = "sasrec",
    grid: Annotated[
        str, typer.Option(help="alpha and dim, separated by commas; empty for none.", metavar="NAMES")
    ] = "alpha,dim",
    search: Annotated[
        int, typer.Option(min=0, help="Trials of a free search for each method, by validation alone.", metavar="N")
    ] = 0,
    space: Annotated[
        Path | None, typer.Option(help="What a search may choose from, as JSON, over what is built in.", metavar="FILE")
    ] = None,
) -> dict[str, Any]:
    """Vary α and d, as the paper's Figure 3 does, and search freely with the same budget for every method.

    [bold]Examples[/bold]

    $ dmesr-cli experiment sweep --dataset movielens --data DIR

    $ dmesr-cli experiment sweep --dataset movielens --data DIR --grid '' --search 20 --methods none,dmesr,ease
    """
    from dmesr_trainer.experiments import sweep as experiment

    names, on = _methods(methods), _backbones(backbones)
    setup = _setup(ctx, shared, experiment="sweep", methods=names)
    return experiment.run(setup, methods=names, backbones=on, grids=_names(grid), trials=search, space=space)


@app.command("mllms")
@_experiment
def mllms(
    ctx: typer.Context,
    *,
    shared: Shared,
    recipes: Annotated[
        str, typer.Option(help="Embedding recipes, separated by commas; the first is the reference.", metavar="NAMES")
    ],
    methods: Methods = "none,dmesr",
    backbones: Backbones = _ALL_BACKBONES,
) -> dict[str, Any]:
    """Compare the texts of several describers, as the paper's Figure 4 does.

    [bold]Examples[/bold]

    $ dmesr-cli experiment mllms --dataset movielens --data DIR --recipes qwen-3b,qwen-7b,visualglm
    """
    from dmesr_trainer.experiments import mllms as experiment
    from dmesr_trainer.experiments.opening import obtain

    names, on, wanted = _methods(methods), _backbones(backbones), _names(recipes)
    if not wanted:
        fail("--recipes names none; list those of the server with `dmesr-cli embeddings recipes`", code=2)
    request = _request(ctx, shared, seeds=3)
    setup = _open(ctx, request, experiment="mllms", methods=["none"])
    vectors = [
        obtain(request, recipe, data=setup.data, store=setup.store, connect=lambda: connected(ctx)) for recipe in wanted
    ]
    return experiment.run(setup, methods=names, backbones=on, recipes=vectors)


def _methods(text: str) -> list[str]:
    from dmesr_trainer.experiments.arms import methods_and_floors

    names = _names(text)
    methods_and_floors(names)
    return names


def _backbones(text: str) -> list[str]:
    from dmesr_trainer.experiments.arms import check_names

    names = _names(text)
    check_names(names, BACKBONES, what="backbone")
    return names


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _setup(ctx: typer.Context, shared: Shared, *, experiment: str, methods: list[str], seeds: int = 3) -> Setup:
    return _open(ctx, _request(ctx, shared, seeds=seeds), experiment=experiment, methods=methods)


def _open(ctx: typer.Context, request: Request, *, experiment: str, methods: list[str]) -> Setup:
    from dmesr_trainer.experiments.arms import reads_vectors
    from dmesr_trainer.experiments.opening import setup

    needed = any(map(reads_vectors, methods))
    return setup(request, experiment=experiment, needs_vectors=needed, connect=lambda: connected(ctx))


def _request(ctx: typer.Context, shared: Shared, *, seeds: int) -> Request:
    from dmesr_trainer.experiments.arms import Budget
    from dmesr_trainer.experiments.opening import Request

    opened, data = shared.options.open(shared.dataset), shared.options.data
    folder = data.resolve().name if shared.dataset == "files" and data else ""
    return Request(
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
        paper_settings=shared.paper_settings,
        device=shared.device,
        jobs=shared.jobs,
        cells=shared.cells,
        runs_from=shared.runs_from or (),
        output=shared.output,
        only_report=shared.only_report,
        command=_repeatable(sys.argv[1:]),
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
