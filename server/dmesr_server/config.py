"""The server's configuration: defaults, then a TOML file, then `DMESR_*` in the environment, then flags.

Nested keys are joined by two underscores in the environment: `DMESR_SERVER__PORT=50060`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from dmesr_server.cores import usable_cores
from dmesr_server.pictures.settings import PicturesConfig

BUNDLED_ENCODER = "bundled:all-MiniLM-L6-v2"


class ConfigError(ValueError):
    """The configuration cannot be used. The message names the key and what it expects."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerConfig(_Section):
    """Where the API listens and whom it lets in."""

    host: str = "127.0.0.1"
    port: int = Field(default=50051, ge=0, le=65535)  # 0 takes a free port, printed at start
    token: str | None = None  # the first bearer token, with all rights; where it is set, every call must carry a token
    require_token: bool = False  # also without it: only tokens that the server made (`dmesr-cli tokens`) let in
    token_poll_seconds: float = Field(default=0.5, gt=0, le=60)  # how often tokens made or revoked elsewhere are seen
    tls_certificate: Path | None = None  # PEM
    tls_key: Path | None = None  # PEM
    tls_client_ca: Path | None = None  # PEM; clients must then show a certificate that one of these has signed
    insecure: bool = False  # let others than this machine in without TLS or without a token
    open_health: bool = True  # health answers without a token: probes of load balancers carry none
    reflection: bool = True  # tell tools such as grpcurl what calls there are
    open_reflection: bool = False  # without a token too, where calls need one
    workers: int = Field(default=1, ge=1, le=256)  # processes that answer at the port; one of them adapts and tidies
    read_only: bool = False  # a replica: it follows the writing server on the same store and changes nothing
    grace_seconds: float = Field(default=10.0, ge=0)  # calls in flight at SIGTERM get this long
    metrics_port: int | None = Field(default=None, ge=0, le=65535)  # Prometheus metrics of all processes; 0: a free one
    metrics_host: str = "127.0.0.1"  # they need no token: keep them among machines that may read them
    picture_roots: tuple[Path, ...] = ()  # folders from which picture URIs may be read

    @model_validator(mode="after")
    def _tls_is_whole(self) -> ServerConfig:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: set both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key: clients show certificates within TLS")
        return self

    @field_validator("token")
    @classmethod
    def _token_is_one(cls, value: str | None) -> str | None:
        # An empty one would let in whoever sends an empty one; others would never arrive as they stand here.
        if value is not None and not (value.isascii() and value.isprintable() and value and " " not in value):
            raise ValueError("token must be printable ASCII characters without spaces, at least one")
        return value

    @property
    def needs_token(self) -> bool:
        """Whether calls must carry a token."""
        return self.require_token or self.token is not None


class StoreConfig(_Section):
    """Where vectors and control data are kept."""

    uri: str = "dmesr-data"  # a folder or any lancedb.connect URI
    control_url: str | None = None  # SQLAlchemy URL; control.sqlite in the store's folder when not set
    index_threshold_rows: int = Field(default=200_000, ge=256)  # vectors of a source from which it gets an index
    index_kind: Literal["IVF_RQ", "IVF_HNSW_SQ", "IVF_PQ"] = "IVF_RQ"  # the others take far longer to make
    housekeeping_seconds: float = Field(default=20.0, gt=0)  # how often tables are looked at, to tidy what is due
    keep_versions_seconds: float = Field(default=1800.0, ge=1)  # how long a reader may take over an unpinned version
    snapshots: Path | None = None  # folder under which snapshots are made; "snapshots" beside the store when not set
    index_poll_seconds: float = Field(default=30.0, gt=0)  # how often indexes that are due are looked for

    @model_validator(mode="after")
    def _remote_needs_control(self) -> StoreConfig:
        if "://" in self.uri and self.control_url is None:
            raise ValueError("a store that is not a local folder needs store.control_url, for instance postgresql://…")
        return self

    @property
    def folder(self) -> Path | None:
        """The store's folder, or None where it is remote."""
        return None if "://" in self.uri else Path(self.uri).expanduser().resolve()

    @property
    def snapshots_folder(self) -> Path | None:
        """The folder under which snapshots are made; None where the store is remote."""
        if self.folder is None:
            return None
        if self.snapshots is not None:
            return self.snapshots.expanduser().resolve()
        return self.folder.with_name(f"{self.folder.name}-snapshots")

    @property
    def resolved_control_url(self) -> str:
        """The SQLAlchemy URL of the control database."""
        if self.control_url is not None:
            return self.control_url
        assert self.folder is not None
        return f"sqlite:///{self.folder / 'control.sqlite'}"

    @property
    def one_host(self) -> bool:
        """Whether all that write are processes of one machine: SQLite serves no more."""
        return self.resolved_control_url.startswith("sqlite")


class EncoderConfig(_Section):
    """How texts become vectors."""

    kind: Literal["sentence-transformers", "openai"] = "sentence-transformers"
    model: str = BUNDLED_ENCODER  # a hub name, a folder, or the one that the package index carries; as openai calls it
    device: str = "auto"
    batch_size: int = Field(default=64, ge=1)  # texts in one forward pass, or in one call of openai
    # What follows is read by the kind openai only.
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key; no key is sent when it is unset
    dim: int | None = Field(default=None, ge=1)  # width of the vectors; asked for where a model offers several
    concurrency: int = Field(default=4, ge=1)  # calls in flight
    timeout_seconds: float = Field(default=60.0, gt=0)
    max_retries: int = Field(default=6, ge=0)  # of one call, after 429, 5xx and lost connections


class MllmConfig(_Section):
    """How the describers vllm, transformers and openai ask their model (§3.2.1)."""

    model: str = "Qwen/Qwen2.5-VL-3B-Instruct"  # a hub name or a folder; the paper's
    revision: str = ""  # a commit of the hub; of a folder, a name for its state, which saves hashing its weights
    max_pixels: int = Field(default=512 * 28 * 28, ge=28 * 28)  # pictures are shrunk to so many: 512 tokens of Qwen's
    max_tokens: int = Field(default=320, ge=8)  # of one description
    temperature: float = Field(default=0.0, ge=0, le=2)  # 0 takes the best token always
    top_p: float = Field(default=1.0, gt=0, le=1)
    repetition_penalty: float = Field(default=1.05, ge=1, le=2)  # what Qwen2.5-VL's own settings say
    seed: int = Field(default=0, ge=0, lt=2**31)
    hybrid_mode: Literal["rounds", "single"] = "rounds"  # draft, review, revise; or the paper's one prompt
    max_rounds: int = Field(default=2, ge=0, le=8)  # of review and revision after the draft
    attempts: int = Field(default=3, ge=1)  # at a usable text, each with another seed
    prompts_folder: Path | None = None  # files here stand in for the packaged ones of the same name
    concurrency: int = Field(default=128, ge=1)  # items in flight: as many as vllm.max_num_seqs, or it idles
    idle_seconds: float = Field(default=900.0, ge=0)  # without work this long, the model is unloaded; 0 never does
    restarts: int = Field(default=3, ge=0)  # of an engine that dies, with nothing described in between
    restart_seconds: float = Field(default=5.0, ge=0)  # before the first restart; doubled for each one after


class VllmConfig(_Section):
    """How the describer vllm runs the model."""

    dtype: str = "auto"
    quantization: str | None = None  # for instance "awq" or "fp8"; None takes what the weights say
    tensor_parallel_size: int = Field(default=1, ge=1)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    max_model_len: int = Field(default=8192, ge=256)  # tokens of a prompt and its answer
    max_num_seqs: int = Field(default=128, ge=1)  # sequences in one step
    max_num_batched_tokens: int = Field(default=16_384, ge=256)  # tokens in one step
    enforce_eager: bool = False  # no CUDA graphs: starts sooner, runs slower
    enable_prefix_caching: bool = True
    trust_remote_code: bool = False
    extra: dict[str, Any] = Field(default_factory=dict)  # any other argument of vLLM's AsyncEngineArgs


class TransformersConfig(_Section):
    """How the describer transformers runs the model."""

    device: str = "auto"  # cuda, mps or cpu
    dtype: str = "auto"  # bfloat16 on a GPU, float32 otherwise
    batch_size: int = Field(default=8, ge=1)  # sequences in one batch
    linger_seconds: float = Field(default=0.02, ge=0)  # waited for a batch to fill
    trust_remote_code: bool = False


class OpenaiConfig(_Section):
    """How the describer openai reaches its endpoint. The model is `enrichment.mllm.model`, as the endpoint calls it."""

    base_url: str = "http://127.0.0.1:8000/v1"
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key; no key is sent when it is unset
    concurrency: int = Field(default=32, ge=1)  # calls in flight
    timeout_seconds: float = Field(default=180.0, gt=0)  # of one call
    max_retries: int = Field(default=6, ge=0)  # of one call, after 429, 5xx and lost connections
    token_budget: int = Field(default=0, ge=0)  # in and out, since the enricher started; 0 sets no limit
    picture_format: Literal["jpeg", "png"] = "jpeg"
    omit: tuple[str, ...] = ()  # fields of the sampling that it does not take, for instance ["seed"]
    extra: dict[str, Any] = Field(default_factory=dict)  # further fields of each request's body
    check_vision: bool = True  # a picture has to make a prompt longer; false where an endpoint does not count it


class EnrichmentConfig(_Section):
    """How items are described and encoded."""

    describer: str = "palette"
    encoder: EncoderConfig = EncoderConfig()
    mllm: MllmConfig = MllmConfig()
    vllm: VllmConfig = VllmConfig()
    transformers: TransformersConfig = TransformersConfig()
    openai: OpenaiConfig = OpenaiConfig()
    auto: bool = False  # every upsert starts enrichment by itself
    batch_items: int = Field(default=256, ge=1, le=4096)  # items worked on at a time: bounds the memory
    concurrency: int = Field(default=8, ge=1)  # descriptions in flight within a batch
    picture_workers: int = Field(default=2, ge=1)  # processes that decode pictures
    poll_seconds: float = Field(default=0.5, gt=0)  # how often an idle enricher looks for a job
    lease_seconds: float = Field(default=10.0, ge=0.5)  # a job whose enricher is silent this long is taken over


class ServingConfig(_Section):
    """How published models are kept and run."""

    artefacts: Path | None = None  # folder of the models' files; artefacts in the store's folder when not set
    tower_threads: int = Field(default=1, ge=1)  # threads of one run of a tower; requests run side by side anyway
    poll_seconds: float = Field(default=0.5, gt=0)  # how often changes of vectors and aliases are looked for
    idle_models: int = Field(default=2, ge=0)  # models behind no alias whose index stays in memory after a request


class LimitsConfig(_Section):
    """What one call may bring. Clients read these by GetServerInfo."""

    max_message_bytes: int = Field(default=4 * 1024 * 1024, ge=64 * 1024)
    max_items_per_batch: int = Field(default=1_000, ge=1)
    max_ids_per_call: int = Field(default=50_000, ge=1)
    max_item_id_bytes: int = Field(default=256, ge=1)
    max_attribute_bytes: int = Field(default=64 * 1024, ge=1)  # of one item
    max_picture_bytes: int = Field(default=32 * 1024 * 1024, ge=1)
    max_picture_pixels: int = Field(default=64_000_000, ge=1)
    max_k: int = Field(default=1_000, ge=1)
    max_histories_per_call: int = Field(default=1_000, ge=1)


class TelemetryConfig(_Section):
    """Traces by OpenTelemetry. What is not set here is taken from OpenTelemetry's own variables (`OTEL_…`)."""

    traces: bool | None = None  # not set: where otlp_endpoint or one of OpenTelemetry's variables names a receiver
    #: Of the collector, for instance http://127.0.0.1:4317.
    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://\S+$")
    #: Of the traces that begin here; those that callers began go on as they decided.
    sample_ratio: float | None = Field(default=None, ge=0, le=1)
    job_steps: int = Field(default=1_000, ge=0)  # spans of one job, beside its own


class AdmissionConfig(_Section):
    """How much work one API process takes at a time. What is beyond is refused (OVERLOADED) with a hint when to return.

    Of each kind: how many calls run at a time, and how many more may wait for that. Which call is of which kind:
    docs/operations.md.
    """

    recommendations_running: int = Field(default=256, ge=1)  # handed on to be answered in the next batches
    recommendations_waiting: int = Field(default=256, ge=0)
    reads_running: int = Field(default=16, ge=1)  # calls in threads, and threads for streams that read
    reads_waiting: int = Field(default=256, ge=0)
    #: Calls in threads that do much arithmetic or look at every row. More than there are cores are in each other's way.
    searches_running: int = Field(default_factory=lambda: min(max(usable_cores(), 2), 8), ge=1)
    searches_waiting: int = Field(default=64, ge=0)
    encodings_running: int = Field(default=128, ge=1)  # searches by a text, which an enricher encodes many at a time
    encodings_waiting: int = Field(default=128, ge=0)
    writes_running: int = Field(default=4, ge=1)  # calls in threads, and threads for streams that write
    writes_waiting: int = Field(default=128, ge=0)
    uploads_running: int = Field(default=16, ge=1)  # open streams
    uploads_waiting: int = Field(default=128, ge=0)
    upload_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024)  # of items and vectors that all hold unwritten
    downloads_running: int = Field(default=32, ge=1)  # open streams; each holds 16 MiB at most, or a picture
    downloads_waiting: int = Field(default=64, ge=0)
    watches_running: int = Field(default=256, ge=1)  # open streams that tell of a job
    watches_waiting: int = Field(default=0, ge=0)
    wait_seconds: float = Field(default=2.0, gt=0)  # who has waited so long is refused too
    intake_seconds: float = Field(default=2.0, gt=0)  # calls wait longer to be seen: a growing share is refused
    idle_seconds: float = Field(default=60.0, gt=0)  # a stream whose client neither sends nor takes anything is ended
    connection_seconds: float = Field(default=3600.0, ge=0)  # then clients connect anew, calls get as long; 0: never


class Config(BaseSettings):
    """All of the server's settings."""

    model_config = SettingsConfigDict(env_prefix="DMESR_", env_nested_delimiter="__", extra="forbid", frozen=True)

    server: ServerConfig = ServerConfig()
    store: StoreConfig = StoreConfig()
    enrichment: EnrichmentConfig = EnrichmentConfig()
    serving: ServingConfig = ServingConfig()
    pictures: PicturesConfig = PicturesConfig()
    limits: LimitsConfig = LimitsConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    admission: AdmissionConfig = AdmissionConfig()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"  # json: an object a line, with the ids of request and job

    @model_validator(mode="after")
    def _remote_needs_artefacts(self) -> Config:
        if self.store.folder is None and self.serving.artefacts is None:
            raise ValueError(
                "a store that is not a local folder needs serving.artefacts, the folder of the models' files"
            )
        return self

    @property
    def artefacts_folder(self) -> Path:
        """The folder of the models' files."""
        if self.serving.artefacts is not None:
            return self.serving.artefacts.expanduser().resolve()
        assert self.store.folder is not None
        return self.store.folder / "artefacts"

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment beats the file (which comes in as init values); flags are laid over both by `load`."""
        return env_settings, init_settings


def load(*, file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Config:
    """Reads the configuration.

    Args:
        file: A TOML file, or None.
        flags: Dotted keys to values, for instance {"server.port": 50060}; None values are passed over.

    Raises:
        ConfigError: The file cannot be read, a key is unknown or a value is out of its range; the message names it.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text())
        except OSError as error:
            raise ConfigError(f"cannot read the configuration file {file}: {error.strerror}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{file} is not valid TOML: {error}") from error
    try:
        config = Config(**values)
        given = {key: value for key, value in (flags or {}).items() if value is not None}
        return _with_flags(config, given) if given else config
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'configuration'}: {fault['msg']}"
            + (f" (got {fault['input']!r})" if fault["type"] not in ("missing", "value_error") else "")
            for fault in error.errors()
        )
        where = f"{file} or the environment" if file else "flags or the environment"
        raise ConfigError(f"bad configuration in {where}: {problems}") from error


def _with_flags(config: Config, flags: Mapping[str, Any]) -> Config:
    values = config.model_dump()
    for dotted, value in flags.items():
        *sections, key = dotted.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[key] = value
    return _Settled(**values)


class _Settled(Config):
    """A configuration whose every key is given: neither file nor environment is asked again."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)
