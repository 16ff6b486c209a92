"""Table 3: DMESR less each of its parts, less each of our additions, and built up from the paper's recipe."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dmesr_trainer.config import Ablation, TrainConfig
from dmesr_trainer.experiments import figures, validation
from dmesr_trainer.experiments.arms import AS_PRINTED, WHOLE, Arm, Setup, check_names, tasks
from dmesr_trainer.experiments.measured import Row, measure, rows
from dmesr_trainer.experiments.paper import TABLE_3_NAMES, table_3
from dmesr_trainer.experiments.pool import Pool
from dmesr_trainer.experiments.report import Report, write
from dmesr_trainer.experiments.table2 import PRINTED, sampled

GROUPS = ("parts", "additions", "steps", "forms", "leak")
# Other forms of the cross-attention, off in every preset.
FORMS: Mapping[str, Mapping[str, Any]] = {
    "gated cross-attention": {"fusion__gate": True},
    "cross-attention by distance": {"fusion__by_distance": True},
    "cross-attention, gated and by distance": {"fusion__gate": True, "fusion__by_distance": True},
}
# No form but a control.
LEAKY = "leaky: cross-attention sees later items"


@dataclass(frozen=True)
class Addition:
    """What `dmesr` does otherwise than the paper's recipe, as settings that belong together.

    Attributes:
        name: For the tables.
        fields: The settings, as `TrainConfig.changed` takes them.
    """

    name: str
    fields: tuple[str, ...]


# In the order in which the steps take them. A setting in which the two recipes agree plays no part.
ADDITIONS = (
    Addition("whitened sources", ("adapter__whiten", "adapter__whitened_dims", "adapter__initial_std")),
    Addition("id part", ("ids__vectors", "ids__dropout")),
    Addition("item bias", ("ids__bias", "sources__bias")),
    Addition("softmax", ("loss__name", "loss__candidates")),
    Addition("random windows", ("optimiser__windows",)),
    Addition("residual", ("fusion__residual", "fusion__heads")),
    Addition("coarse form", ("sources__coarse_form",)),
)
_ALIGNMENT = "alignment settings"
_REST = "width, steps and the rest"
# The budget is the experiment's, and these say what a run is.
_NO_ADDITION = ("method", "seed", "device", "precision", "optimiser__epochs", "optimiser__patience")


def additions(paper: TrainConfig, ours: TrainConfig) -> list[Addition]:
    """The additions in which two recipes differ; each differing setting belongs to exactly one."""
    before, after = flat(paper), flat(ours)
    differ = [name for name in after if before[name] != after[name] and name not in _NO_ADDITION]
    found = []
    for addition in ADDITIONS:
        fields = tuple(name for name in differ if name in addition.fields)
        differ = [name for name in differ if name not in fields]
        if fields:
            found.append(Addition(addition.name, fields))
    aligning = tuple(name for name in differ if name.startswith("alignment__"))
    rest = tuple(name for name in differ if name not in aligning)
    return found + [Addition(name, fields) for name, fields in ((_ALIGNMENT, aligning), (_REST, rest)) if fields]


def flat(config: TrainConfig) -> dict[str, Any]:
    """A configuration as "part__field" → value."""
    found: dict[str, Any] = {}
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{one.name}__{inner.name}": getattr(value, inner.name) for inner in dataclasses.fields(value)}
        else:
            found[one.name] = value
    return found


def arms(setup: Setup, *, backbones: Sequence[str], groups: Sequence[str] = GROUPS[:3]) -> list[Arm]:
    """The whole method and its variants on each backbone.

    Args:
        setup: What the experiment shares.
        backbones: f_θ.
        groups: "parts" (the paper's four ablations), "additions" (`dmesr` with one addition taken back to the paper's
            recipe), "steps" (the paper's recipe with the additions put in one after the other), "forms" (other forms
            of the cross-attention), "leak" (no causal mask in the cross-attention, to show what that does).

    Raises:
        ValueError: A name is unknown.
    """
    check_names(groups, GROUPS, what="group of rows")
    found = []
    for backbone in backbones:
        whole, printed = setup.config(WHOLE, backbone), setup.config(AS_PRINTED, backbone)
        found.append(setup.arm(WHOLE, backbone, paper=_paper(setup, backbone, "")))
        if "parts" in groups:
            found += _parts(setup, backbone, whole)
        found += _variants(setup, backbone, whole=whole, printed=printed, groups=groups)
    return found


def run(setup: Setup, *, backbones: Sequence[str], groups: Sequence[str]) -> dict[str, Any]:
    """Runs what is missing and writes the table.

    Returns:
        What results.json holds.
    """
    chosen = arms(setup, backbones=backbones, groups=groups)
    todo = tasks(setup, chosen)
    with Pool(setup.jobs) as pool:
        failures = [] if setup.only_report else pool.run(todo, label="ablation")
    measured = measure(setup, chosen)
    found = rows(measured, references={"whole": _whole_of})
    return write(
        Report(
            experiment="ablation",
            subject="Ablations of DMESR",
            rows=found,
            measured=measured,
            vectors=[setup.vectors] if setup.vectors else [],
            notes=_notes(chosen),
            figure=lambda title: figures.differences(found, metrics=sampled(found), test="whole", title=title),
            sections=[validation.section(measured)],
            further={
                "variants": [_variant(setup, arm) for arm in chosen],
                "validation": [validation.line(one) for one in measured],
            },
            failures=failures,
            missing=sum(not task.cell.finished for task in todo),
        ),
        setup,
    )


def _parts(setup: Setup, backbone: str, whole: TrainConfig) -> list[Arm]:
    found = []
    for name in typing.get_args(Ablation):
        ablation: Ablation = name
        label = TABLE_3_NAMES.get(ablation, f"w/o {ablation}")
        found.append(
            setup.arm(
                WHOLE,
                backbone,
                called=f"{label} ({ablation})",
                config=whole.without(ablation),
                role="variant",
                paper=_paper(setup, backbone, ablation),
                group="less one of the paper's parts",
            )
        )
    return found


def _variants(
    setup: Setup, backbone: str, *, whole: TrainConfig, printed: TrainConfig, groups: Sequence[str]
) -> list[Arm]:
    before, after = flat(printed), flat(whole)
    ours = additions(printed, whole)
    found = []
    if "forms" in groups:
        for label, fields in FORMS.items():
            config, group = whole.changed(**fields), "another form of the cross-attention"
            found.append(setup.arm(WHOLE, backbone, called=label, config=config, role="variant", group=group))
    if "leak" in groups:
        config, group = whole.changed(fusion__leaky=True), "what a leak in training does"
        found.append(setup.arm(WHOLE, backbone, called=LEAKY, config=config, role="variant", group=group))
    if "additions" in groups:
        for addition in ours:
            config = whole.changed(**{name: before[name] for name in addition.fields})
            label, group = f"as printed: {addition.name}", "one of our additions as the paper has it"
            found.append(setup.arm(WHOLE, backbone, called=label, config=config, role="variant", group=group))
    if "steps" in groups:
        config, group = printed, "from the paper's recipe, one addition after the other"
        found.append(setup.arm(AS_PRINTED, backbone, group=group))
        # The last step is the whole method, which has its row already.
        for number, addition in enumerate(ours[:-1], start=1):
            config = config.changed(**{name: after[name] for name in addition.fields})
            # One model, whatever the label: the name of the method decides nothing else.
            config = replace(config, method=WHOLE)
            label = f"step {number}: + {addition.name}"
            found.append(setup.arm(WHOLE, backbone, called=label, config=config, role="variant", group=group))
    return found


def _paper(setup: Setup, backbone: str, without: str) -> Mapping[str, Any]:
    if setup.data.about.filters:
        return {}
    return {
        metric: value
        for metric in PRINTED
        if (value := table_3(setup.data.about.dataset, backbone=backbone, without=without, metric=metric))
    }


def _whole_of(row: Row, family: Sequence[Row]) -> Row | None:
    return next((one for one in family if (one.method, one.backbone) == (WHOLE, row.backbone)), None)


def _variant(setup: Setup, arm: Arm) -> dict[str, Any]:
    """In what a row's settings differ from the whole method's."""
    whole, own = flat(setup.config(WHOLE, arm.backbone)), flat(arm.config)
    changed = {name.replace("__", "."): value for name, value in own.items() if value != whole[name]}
    return {"backbone": arm.backbone, "method": arm.method, "changed": changed}


def _notes(chosen: Sequence[Arm]) -> list[str]:
    notes = ["Every row is compared with the whole method on its backbone; below 0 it is worse than the whole method."]
    if any(arm.method == LEAKY for arm in chosen):
        notes.append(
            "The leaky row is no method: in training each position sees the item that it has to name, which it cannot "
            "at the test."
        )
    if any(arm.method.startswith("step") for arm in chosen):
        notes.append(
            f"The steps begin at `{AS_PRINTED}` and put in one addition after the other; after the last one it is "
            f"`{WHOLE}`. results.json tells the settings of each row (`variants`)."
        )
    return notes
