"""Pointers within the control database: each must lead to something. Read at one moment, so nothing is in between."""

from __future__ import annotations

from collections.abc import Iterator

from dmesr_server.control import Records
from dmesr_server.upkeep.findings import RESTORE_CONTROL, Finding, fault, leftover


def dangling(records: Records) -> Iterator[Finding]:
    """What points nowhere."""
    yield from _aliases(records)
    yield from _recipes(records)
    yield from _jobs(records)
    for table, catalog in records.strays:
        yield leftover(
            "RECORDS_WITHOUT_CATALOG",
            catalog=catalog,
            place=table,
            about=[catalog],
            problem=f"the control database has rows in {table} for the catalog {catalog}, which does not exist",
            remedy=f"create the catalog {catalog} and drop it again: `dmesr-cli catalogs create {catalog}`, "
            f"`dmesr-cli catalogs drop {catalog}`",
        )


def _aliases(records: Records) -> Iterator[Finding]:
    models = {(model.catalog, model.ref) for model in records.models}
    names = {(alias.catalog, alias.alias) for alias in records.aliases}
    for alias in records.aliases:
        if (alias.catalog, alias.ref) not in models:
            yield fault(
                "DANGLING_ALIAS",
                catalog=alias.catalog,
                place=alias.alias,
                about=[alias.ref],
                problem=f"the alias {alias.alias} points to the model {alias.ref}, which does not exist",
                remedy=f"promote one that does: `dmesr-cli models promote NAME:VERSION --alias {alias.alias}`",
            )
    for catalog, name, ref in records.earlier:
        if (catalog, ref) not in models:
            yield fault(
                "DANGLING_ALIAS_HISTORY",
                catalog=catalog,
                place=name,
                about=[ref],
                problem=f"a roll back of the alias {name} would point it to {ref}, which does not exist",
                remedy="do not roll back as far as that; promote the wanted model by its name and version",
            )
    for split in records.splits:
        missing = [name for name in (split.alias, split.other_alias) if (split.catalog, name) not in names]
        if missing:
            yield fault(
                "DANGLING_SPLIT",
                catalog=split.catalog,
                place=split.alias,
                about=missing,
                problem=f"calls to {split.alias} are split with {split.other_alias}: there is no alias {missing[0]}",
                remedy=f"promote a model to {missing[0]}, or end the split: `dmesr-cli models split --alias "
                f"{split.alias} --share 0`",
            )


def _recipes(records: Records) -> Iterator[Finding]:
    known = {(recipe.catalog, recipe.recipe_id) for recipe in records.embedding_recipes}
    for catalog, name, recipe_id in records.recipe_names:
        if (catalog, recipe_id) not in known:
            yield fault(
                "DANGLING_RECIPE_NAME",
                catalog=catalog,
                place=name,
                about=[recipe_id],
                problem=f"the recipe name {name} stands for {recipe_id}, which does not exist",
                remedy=f"let a job make it anew (`dmesr-cli enrich start --recipe {name}`), or {RESTORE_CONTROL}",
            )
    for recipe in records.embedding_recipes:
        missing = [
            described
            for described in recipe.description_recipes.values()
            if (recipe.catalog, described) not in records.description_recipes
        ]
        if missing:
            yield fault(
                "RECIPE_WITHOUT_DESCRIPTIONS",
                catalog=recipe.catalog,
                place=recipe.recipe_id,
                about=missing,
                problem=f"the recipe {recipe.recipe_id} is made from description recipes that do not exist",
                remedy=f"enrich again with the same settings, which writes them down anew, or {RESTORE_CONTROL}",
            )
    for model in records.models:
        if model.recipe_id and (model.catalog, model.recipe_id) not in known:
            yield fault(
                "MODEL_WITHOUT_RECIPE",
                catalog=model.catalog,
                place=model.ref,
                about=[model.recipe_id],
                problem=f"the model {model.ref} reads the recipe {model.recipe_id}, which does not exist",
                remedy=f"enrich again with the settings of that recipe, or {RESTORE_CONTROL}",
            )


def _jobs(records: Records) -> Iterator[Finding]:
    known = {(recipe.catalog, recipe.recipe_id) for recipe in records.embedding_recipes}
    lost = [job for job in records.jobs if (job.catalog, job.recipe_id) not in known]
    for catalog in sorted({job.catalog for job in lost}):
        of_it = [job for job in lost if job.catalog == catalog]
        waiting = [job.job_id for job in of_it if not job.state.ended]
        ended = [job.job_id for job in of_it if job.state.ended]
        problem = "jobs fill a recipe that does not exist"
        if waiting:
            yield fault(
                "DANGLING_JOB",
                catalog=catalog,
                place="jobs",
                about=waiting,
                problem=f"{problem}, and they wait or run",
                remedy="cancel them (`dmesr-cli enrich cancel JOB`) and start new ones",
            )
        if ended:
            yield leftover(
                "ENDED_DANGLING_JOB",
                catalog=catalog,
                place="jobs",
                about=ended,
                problem=f"{problem}; they have ended",
                remedy="do not retry them; start new ones",
            )
