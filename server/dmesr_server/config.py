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

BUNDLED_ENCODER = "bundled:all-MiniLM-L6-v2"


class ConfigError(ValueError):
    """The configuration cannot be used. The message names the key and what it expects."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerConfig(_Section):
    """Where the API listens and whom it lets in."""

    host: str = "127.0.0.1"
    port: int = Field(default=50051, ge=0, le=65535)  # 0 takes a free port, printed at start
    token: str | None = None  # bearer token that every call must carry, health apart
    tls_certificate: Path | None = None  # PEM
    tls_key: Path | None = None  # PEM
    grace_seconds: float = Field(default=10.0, ge=0)  # calls in flight at SIGTERM get this long
    picture_roots: tuple[Path, ...] = ()  # folders from which picture URIs may be read

    @model_validator(mode="after")
    def _tls_is_whole(self) -> ServerConfig:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: set both or neither")
        return self


class StoreConfig(_Section):
    """Where vectors and control data are kept."""

    uri: str = "dmesr-data"  # a folder or any lancedb.connect URI
    control_url: str | None = None  # SQLAlchemy URL; control.sqlite in the store's folder when not set

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
    def resolved_control_url(self) -> str:
        """The SQLAlchemy URL of the control database."""
        if self.control_url is not None:
            return self.control_url
        assert self.folder is not None
        return f"sqlite:///{self.folder / 'control.sqlite'}"


class EncoderConfig(_Section):
    """How texts become vectors."""

    kind: Literal["sentence-transformers"] = "sentence-transformers"
    model: str = BUNDLED_ENCODER  # a hub name, a folder, or the one that the package index carries
    device: str = "auto"
    batch_size: int = Field(default=64, ge=1)  # texts in one forward pass


class EnrichmentConfig(_Section):
    """How items are described and encoded."""

    describer: str = "palette"
    encoder: EncoderConfig = EncoderConfig()
    auto: bool = False  # every upsert starts enrichment by itself
    batch_items: int = Field(default=256, ge=1, le=4096)  # items worked on at a time: bounds the memory
    concurrency: int = Field(default=8, ge=1)  # descriptions in flight within a batch
    picture_workers: int = Field(default=2, ge=1)  # threads that decode pictures
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


class Config(BaseSettings):
    """All of the server's settings."""

    model_config = SettingsConfigDict(env_prefix="DMESR_", env_nested_delimiter="__", extra="forbid", frozen=True)

    server: ServerConfig = ServerConfig()
    store: StoreConfig = StoreConfig()
    enrichment: EnrichmentConfig = EnrichmentConfig()
    serving: ServingConfig = ServingConfig()
    limits: LimitsConfig = LimitsConfig()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

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
    def settings_customise_sources(cls, settings_cls: type[BaseSettings], **sources: Any) -> tuple[Any, ...]:
        return (sources["init_settings"],)
