"""`python -m benchmarks.enrichment`: measures, prints a table, and puts the figures into a JSON file.

Runs in the project's environment (.venv). Parts that need vLLM run in a process of the environment that has it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import rows as figures
from benchmarks.rows import Row, machine

from . import catalogue, encoding, memory
from .catalogue import Listing
from .engine import TINY

ROOT = Path(__file__).parents[2]
_WITH_VLLM = ("generation", "caching", "rounds", "pictures")
PARTS = (*_WITH_VLLM, "encoding", "memory")
_ENCODED_ITEMS = 1_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a target is missed."""
    given = _parser().parse_args(arguments)
    parts = list(dict.fromkeys(given.part or PARTS))
    domain, listings = catalogue.load(given.data)
    measured: list[Row] = []
    for part in parts:
        # An engine of its own for each, and kept at once: a part that fails takes none of the others with it.
        if part in _WITH_VLLM:
            measured += _with_vllm([part], given, domain, listings)
            figures.merge(given.output, measured)
    on = machine("sentence-transformers", "torch", "transformers", "lancedb")
    rest: list[Row] = []
    if "encoding" in parts:
        rest += encoding.measure(listings[:_ENCODED_ITEMS], domain=domain, repeats=given.repeats)
    if "memory" in parts:
        rest += memory.measure(listings, domain=domain, repeats=min(given.repeats, 3))
    measured += [Row(**{**vars(row), "how": f"{row.how}; {on}"}) for row in rest]
    figures.merge(given.output, measured)
    print(figures.table(measured))
    print(f"\nwritten to {given.output}; how each figure was got stands there")
    return int(any(row.met is False for row in measured))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.enrichment", description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be repeated")
    parser.add_argument("--data", type=Path, help="films: a folder with film-attributes.jsonl, ml-latest-small/ and "
                        "movie-posters/; the sample's novels without it")  # fmt: skip
    parser.add_argument("--model", default=TINY, help="a multimodal LLM, by name or folder; without it a tiny random "
                        "one is made on the spot")  # fmt: skip
    parser.add_argument("--items", type=int, default=96, help="of a job with vLLM")
    parser.add_argument("--max-tokens", type=int, help="of an answer; 128 with the tiny model")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement")
    parser.add_argument("--vllm-python", type=Path, help="the Python that has vLLM; this one, or .venv-vllm's")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "enrichment.json")
    return parser


def _with_vllm(parts: list[str], given: argparse.Namespace, domain: str, listings: Sequence[Listing]) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        items, answer = Path(folder) / "items.jsonl", Path(folder) / "rows.json"
        catalogue.write(listings[: given.items], items)
        settings = {
            "parts": parts,
            "model_name": given.model,
            "max_tokens": given.max_tokens or (128 if given.model == TINY else None),
            "items": str(items),
            "domain": domain,
            "count": given.items,
            "repeats": given.repeats,
        }
        command = [_vllm_python(given.vllm_python), "-m", f"{__package__}.with_vllm", json.dumps(settings), answer]
        ended = subprocess.run(list(map(str, command)), cwd=ROOT, check=False)
        if ended.returncode:
            raise SystemExit(f"error: the parts {', '.join(parts)} failed in {command[0]} (see above)")
        return [Row(**row) for row in json.loads(answer.read_text())]


def _vllm_python(given: Path | None) -> Path:
    if given is None and importlib.util.find_spec("vllm") is not None:
        return Path(sys.executable)
    python = given or ROOT / ".venv-vllm" / "bin" / "python"
    if not python.exists():
        raise SystemExit(
            f"error: {', '.join(_WITH_VLLM)} need vLLM, and there is no {python}: 'make .venv-vllm/.installed' makes "
            "the environment, --vllm-python names another, --part encoding --part memory do without"
        )
    return python.absolute()


if __name__ == "__main__":  # the encoder's peer imports this file again
    sys.exit(main())
