"""Results as Markdown, beside what the paper prints."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dmesr_trainer.experiments.measured import Row
from dmesr_trainer.experiments.vectors import Vectors

_SIGNIFICANT = 0.05


def page(
    *,
    title: str,
    rows: Sequence[Row],
    notes: Sequence[str],
    sections: Sequence[str],
    figure: str | None,
    command: str,
    vectors: Sequence[Vectors],
) -> str:
    """The whole page.

    Args:
        title: Its heading.
        rows: Of the table.
        notes: Sentences under it.
        sections: Further Markdown.
        figure: The picture's file.
        command: What was typed.
        vectors: What was read; without a multimodal LLM the page says how to get the real thing.
    """
    parts = [f"# {title}"]
    groups = list(dict.fromkeys(row.measured.group or row.measured.arm.group for row in rows))
    for group in groups:
        chosen = [row for row in rows if (row.measured.group or row.measured.arm.group) == group]
        if group:
            parts.append(f"## {group[0].upper()}{group[1:]}")
        parts += [figures_table(chosen), *comparisons_tables(chosen)]
    if figure:
        parts.append(f"![{title}]({figure})")
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    parts += sections
    parts.append(_legend(rows))
    parts.append(f"Made by\n\n    {command}")
    if vectors and not all(one.describer.is_mllm for one in vectors):
        parts.append(_with_a_real_one(command))
    return "\n\n".join(part for part in parts if part) + "\n"


def figures_table(rows: Sequence[Row]) -> str:
    """Means with intervals, the paper's number beside each; the best of a backbone is bold."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    printed = [metric for metric in metrics if any(metric in row.measured.arm.paper for row in rows)]
    head = ["backbone", "method"]
    for metric in metrics:
        head.append(heading(metric))
        if metric in printed:
            head.append("paper")
    best = {
        (metric, backbone): max(row.mean for row in rows if row.metric == metric and row.backbone == backbone)
        for metric in metrics
        for backbone in {row.backbone for row in rows}
    }
    lines = []
    for backbone, method in dict.fromkeys((row.backbone, row.method) for row in rows):
        line = [backbone or "–", method]
        for metric in metrics:
            row = next(
                (one for one in rows if (one.backbone, one.method, one.metric) == (backbone, method, metric)), None
            )
            line.append(_figure(row, best=best.get((metric, backbone))) if row else "–")
            if metric in printed:
                value = row and row.measured.arm.paper.get(metric)
                line.append(f"{value.value:.4f}" if value else "–")
        lines.append(line)
    return table(head, lines)


def comparisons_tables(rows: Sequence[Row]) -> list[str]:
    """Differences with intervals and p-values, for each kind of comparison."""
    names = list(dict.fromkeys(name for row in rows for name in row.tests))
    parts = []
    for name in names:
        lines = []
        for row in rows:
            test = row.tests.get(name)
            if test is None:
                continue
            difference = test.comparison.difference
            before = row.mean - difference.mean
            lines.append(
                [
                    row.backbone or "–",
                    row.method,
                    heading(row.metric),
                    test.against,
                    f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]",
                    f"{difference.mean / before:+.1%}" if before > 0 else "–",
                    p_value(test.comparison.p_value),
                    p_value(test.p_holm) + ("*" if test.p_holm < _SIGNIFICANT else ""),
                ]
            )
        head = ["backbone", "method", "metric", "against", "difference", "relative", "p", "p (Holm)"]
        parts.append(
            f"<details><summary>Against {_COMPARED.get(name, name)}</summary>\n\n{table(head, lines)}\n\n</details>"
        )
    return parts


_COMPARED = {
    "best": "the best baseline",
    "none": "None",
    "whole": "the whole method",
    "preset": "the preset",
    "first": "the first recipe",
}


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = ["---" if place < 2 else "---:" for place in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))


def heading(metric: str) -> str:
    """How people read a metric's name: full NDCG@10 for full_ndcg@10."""
    name = metric.removeprefix("full_").upper()
    return f"full {name}" if metric.startswith("full_") else name


def p_value(value: float) -> str:
    """Short, and never "0"."""
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _figure(row: Row, *, best: float | None) -> str:
    figure = f"{row.mean:.4f}"
    if best is not None and row.mean == best and row.backbone:
        figure = f"**{figure}**"
    star = "\\*" if (test := row.tests.get("best")) and _beats(test.comparison.difference.mean, test.p_holm) else ""
    spread = f" ± {row.std:.4f}" if row.std is not None else ""
    return f"{figure}{star}{spread} [{row.low:.3f}, {row.high:.3f}]"


def _beats(difference: float, p_holm: float) -> bool:
    return difference > 0 and p_holm < _SIGNIFICANT


def _legend(rows: Sequence[Row]) -> str:
    seeds = sorted({len(row.measured.seeds) for row in rows})
    told = " to ".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1]))) if seeds else "no"
    star = any("best" in row.tests for row in rows)
    means = "Of one seed" if told == "1" else f"Means over {told} seeds ± the standard deviation of the seeds' means"
    return (
        f"{means}, [95 % interval over users]. Tests are two-sided paired "
        "t-tests over users, on each user's value averaged over seeds; p (Holm) is corrected for all "
        "rows of one metric that are compared with the same kind of row."
        + (" \\*: above the best baseline at p (Holm) < 0.05." if star else "")
        + " HR and NDCG without “full”: 1 positive among 100 sampled items that the user has not met, the same for all "
        "methods; “full”: among all items. Ties count against the method."
    )


def _with_a_real_one(command: str) -> str:
    catalog = _value(command, "--catalog")
    where = f" --catalog {catalog}" if catalog else ""
    again = _without(command, "--recipes" if "--recipes" in command else "--recipe")
    if "--recipes" in command:
        again += " --recipes qwen-3b,qwen-7b"
        other = f"    # the same with Qwen2.5-VL-7B (docs/mllms.md) as --recipe qwen-7b{where}\n"
    else:
        again += " --recipe qwen-3b"
        other = ""
    return (
        "No multimodal LLM is known to have made these texts. With a real one, on a machine with a GPU:\n\n"
        "    pip install '.[vllm]'\n"
        "    dmesr-cli serve --describer vllm &\n"
        f"    dmesr-cli enrich start --recipe qwen-3b{where}\n"
        f"{other}    {again}"
    )


def _value(command: str, option: str) -> str:
    words = command.split()
    return next((value for name, value in pairwise(words) if name == option), "")


def _without(command: str, option: str) -> str:
    value = _value(command, option)
    return command.replace(f" {option} {value}", "") if value else command
