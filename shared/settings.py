"""All settings, read from the environment once, by entry points only."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from shared import setting_checks as check
from shared.cores import default_cores
from shared.errors import BadSetting
from shared.job_settings import JobSettings
from shared.logs import log_as
from shared.open_files import lift_open_files
from shared.redis_urls import RedisUrl
from shared.setting_checks import setting as _setting

log = logging.getLogger(__name__)

LARGEST_TRACE_RATE = 2**31 - 1
"""What Triton's trace settings hold."""
NO_TELEMETRY = ("ORT_DISABLE_TELEMETRY", "1")
"""ONNX Runtime reads it when it is imported, and else keeps a session for Microsoft in TMPDIR."""


@dataclass(frozen=True)
class Settings(JobSettings):
    """All settings; every field has its variable, its default, its effect and its check."""

    redis_url: str = _setting(
        "",
        "REDIS_URL",
        "Redis or Valkey (>= 6.2) to meet at; unset: one is embedded",
        check.redis_url,
    )
    host: str = _setting("127.0.0.1", "FERRY_HOST", "address the API listens on", check.text)
    port: int = _setting(8000, "FERRY_PORT", "port the API listens on", check.whole(1, 65535))
    grpc_port: int = _setting(
        8001,
        "FERRY_GRPC_PORT",
        "port the gRPC API listens on, at FERRY_HOST",
        check.whole(1, 65535),
    )
    grpc_threads: int = _setting(
        256,
        "FERRY_GRPC_THREADS",
        "infer requests under way at a time over gRPC before UNAVAILABLE; those of streams wait "
        "instead, and leave a quarter of the places to single calls",
        check.whole(1, 10_000),
    )
    grpc_idle_seconds: float = _setting(
        600.0,
        "FERRY_GRPC_IDLE_SECONDS",
        "a gRPC stream on which nothing was asked for so long is ended with UNAVAILABLE",
        check.seconds,
    )
    hosts: str = _setting(
        "",
        "FERRY_HOSTS",
        "names by which clients call the APIs besides `localhost` and addresses, separated by "
        "commas; `.example.org` is all below it, `*` any: of other names browsers' pages may lie",
        check.host_names,
    )
    keys_file: str = _setting(
        "",
        "FERRY_KEYS_FILE",
        "JSON file with the hashes of API keys, read again within a second; unset: keys are kept "
        "in Redis. `ferry keys add` makes keys",
        check.text,
    )
    insecure: bool = _setting(
        False,
        "FERRY_INSECURE",
        "1 starts without API keys also where others than this machine reach FERRY_HOST, and then "
        "lets them do everything",
        check.flag,
    )
    dashboard_port: int = _setting(
        9181, "FERRY_DASHBOARD_PORT", "loopback port of the job dashboard", check.whole(1, 65535)
    )
    readiness: str = _setting(
        "strict",
        "FERRY_READINESS",
        "models that the server's readiness wants: strict (all, as Triton), any (one of them) or "
        "names, separated by commas",
        check.readiness,
    )
    metrics_port: int = _setting(
        8002,
        "FERRY_METRICS_PORT",
        "port of a worker's own /metrics, at FERRY_HOST, Triton's for this; 0 for none",
        check.whole(0, 65535),
    )
    models: str = _setting(
        "models",
        "FERRY_MODELS",
        "directory of the model repository, relative to where `ferry up` is called",
        check.text,
    )
    model_control_mode: str = _setting(
        "none",
        "FERRY_MODEL_CONTROL_MODE",
        "none, explicit (models are loaded and unloaded by request) or poll (changes of files are "
        "taken up by themselves)",
        check.control_mode,
    )
    load_models: str = _setting(
        "",
        "FERRY_LOAD_MODELS",
        "in mode explicit: models to load at the start, separated by commas; `*` for all",
        check.model_names,
    )
    poll_seconds: float = _setting(
        5.0,
        "FERRY_POLL_SECONDS",
        "in mode poll: how often changes are looked for; one is taken up at the look after",
        check.seconds,
    )
    standby_seconds: float = _setting(
        60.0,
        "FERRY_STANDBY_SECONDS",
        "how long a version that was replaced stays loaded, so that a rollback is immediate",
        check.seconds_or_none,
    )
    shadow_examples: int = _setting(
        20,
        "FERRY_SHADOW_EXAMPLES",
        "requests that a shadow answered otherwise and that are kept, with their inputs; 0: none",
        check.whole(0, 1000),
    )
    canary_percent: int = _setting(
        0,
        "FERRY_CANARY_PERCENT",
        "share of the requests that a version which takes over gets first; 0: all at once",
        check.whole(0, 99),
    )
    canary_seconds: float = _setting(
        600.0,
        "FERRY_CANARY_SECONDS",
        "how long it has that share before it gets all, unless it fails",
        check.seconds,
    )
    state_dir: str = _setting(
        ".ferry",
        "FERRY_STATE_DIR",
        "directory of the embedded Valkey's socket and data",
        check.text,
    )
    api_processes: int = _setting(
        0,
        "FERRY_API_PROCESSES",
        "gunicorn worker processes; 0 takes half of the cores, at least one",
        check.whole(0, 256),
    )
    api_connections: int = _setting(
        1000,
        "FERRY_API_CONNECTIONS",
        "connections one API process holds at a time",
        check.whole(1, 100_000),
    )
    max_body_bytes: int = _setting(
        64 * 2**20,
        "FERRY_MAX_BODY_BYTES",
        "larger bodies are refused with 413",
        check.whole(1024, check.MOST_MESSAGE_BYTES),
    )
    max_json_bytes: int = _setting(
        16 * 2**20,
        "FERRY_MAX_JSON_BYTES",
        "more JSON in a body, once it is opened, is refused with 413; binary data may be larger",
        check.whole(1024),
    )
    max_bodies_bytes: int = _setting(
        512 * 2**20,
        "FERRY_MAX_BODIES_BYTES",
        "bytes of large bodies under way in one API process before 503",
        check.whole(1024),
    )
    max_body_seconds: float = _setting(
        300.0,
        "FERRY_MAX_BODY_SECONDS",
        "a body that is not there by then is refused with 408, as one below 16 KiB/s",
        check.seconds,
    )
    max_image_pixels: int = _setting(
        50_000_000,
        "FERRY_MAX_IMAGE_PIXELS",
        "pictures of a request that have more pixels together, as declared or once resized, are "
        "refused before decoding",
        check.whole(1),
    )
    max_queue_size: int = _setting(
        10_000, "FERRY_MAX_QUEUE_SIZE", "requests waiting per model before 503", check.whole(1)
    )
    max_queue_bytes: int = _setting(
        256 * 2**20,
        "FERRY_MAX_QUEUE_BYTES",
        "bytes of request bodies waiting per model before 503",
        check.whole(1024),
    )
    max_kept_bytes: int = _setting(
        256 * 2**20,
        "FERRY_MAX_KEPT_BYTES",
        "bytes per model that are kept for who asks later (asynchronous answers, their records, "
        "Idempotency-Keys) before 503",
        check.whole(1024),
    )
    max_waiting: int = _setting(
        800,
        "FERRY_MAX_WAITING",
        "requests under way in one API process before 503; keep it below FERRY_API_CONNECTIONS, "
        "for a connection above that is not even refused",
        check.whole(1),
    )
    shared_body_bytes: int = _setting(
        256 * 2**20,
        "FERRY_SHARED_BODY_BYTES",
        "bytes of large bodies that one API process may have in shared memory (/dev/shm), where "
        "workers of the same machine read them; 0: all goes through Redis",
        check.whole(0),
    )
    body_urls: str = _setting(
        "",
        "FERRY_BODY_URLS",
        "Redis servers, separated by commas, in which large bodies lie where memory is not shared; "
        "the same for APIs and workers; unset: they go through REDIS_URL's",
        check.body_urls,
    )
    durable: bool = _setting(
        False,
        "FERRY_DURABLE",
        "1 accepts an asynchronous request only once Redis has flushed it to its disk",
        check.flag,
    )
    request_timeout_seconds: float = _setting(
        30.0,
        "FERRY_REQUEST_TIMEOUT_SECONDS",
        "deadline of a request, from its push; and the longest silence within a body",
        check.seconds,
    )
    max_request_timeout_seconds: float = _setting(
        600.0,
        "FERRY_MAX_REQUEST_TIMEOUT_SECONDS",
        "the longest deadline that a client may ask for",
        check.seconds,
    )
    result_ttl_seconds: float = _setting(
        60.0, "FERRY_RESULT_TTL_SECONDS", "how long an unread answer is kept", check.seconds
    )
    cache_bytes: int = _setting(
        64 * 2**20,
        "FERRY_CACHE_BYTES",
        "answers kept per version of a model with response_cache; the longest unused go first",
        check.whole(1024),
    )
    cache_seconds: float = _setting(
        300.0, "FERRY_CACHE_SECONDS", "how long such an answer is given again", check.seconds
    )
    heartbeat_seconds: float = _setting(
        2.0,
        "FERRY_HEARTBEAT_SECONDS",
        "how often a supervisor says it lives; after three misses others take over its work",
        check.seconds,
    )
    max_batch_seconds: float = _setting(
        60.0,
        "FERRY_MAX_BATCH_SECONDS",
        "a batch that runs longer is killed and retried",
        check.seconds,
    )
    max_growth_bytes: int = _setting(
        2 * 2**30,
        "FERRY_MAX_GROWTH_BYTES",
        "an instance that holds so much more memory than when it was ready is replaced between two "
        "batches; 0: never",
        check.whole(0),
    )
    max_load_seconds: float = _setting(
        1800.0,
        "FERRY_MAX_LOAD_SECONDS",
        "an instance that is not ready by then is killed, and tried again after a pause",
        check.seconds,
    )
    min_ready_share: float = _setting(
        0.0,
        "FERRY_MIN_READY_SHARE",
        "part of a version's instances, from 0 to 1, that must be ready on each machine before it "
        "takes requests, once each is ready or has failed; 0: one instance is enough",
        check.share,
    )
    allow_cpu_fallback: bool = _setting(
        False,
        "FERRY_ALLOW_CPU_FALLBACK",
        "1 runs models that ask for GPUs (KIND_GPU) on the CPU of a machine that has none",
        check.flag,
    )
    gpus: str = _setting(
        "",
        "FERRY_GPUS",
        "GPUs that this worker places models on, by number or UUID, separated by commas; unset: "
        "all that are there, `none` for none",
        check.gpus,
    )
    cpu_threads: int = _setting(
        0,
        "FERRY_CPU_THREADS",
        "threads per model instance on the CPU; 0 shares the cores among the instances",
        check.whole(0, 1024),
    )
    allow_pickle: bool = _setting(
        False,
        "FERRY_ALLOW_PICKLE",
        "1 serves joblib files, which run whatever code is in them when they are loaded",
        check.flag,
    )
    allow_machine_code: bool = _setting(
        False,
        "FERRY_ALLOW_MACHINE_CODE",
        "1 serves AOTInductor packages (.pt2), machine code that runs when it is loaded",
        check.flag,
    )
    require_verified: bool = _setting(
        False,
        "FERRY_REQUIRE_VERIFIED",
        "1 serves no version without a passing verify.json for its very files (`ferry verify`)",
        check.flag,
    )
    key_prefix: str = _setting(
        "ferry", "FERRY_KEY_PREFIX", "first word of every Redis key", check.key_prefix
    )
    log_level: str = _setting(
        "INFO", "FERRY_LOG_LEVEL", "DEBUG, INFO, WARNING or ERROR", check.log_level
    )

    log_format: str = _setting(
        "text",
        "FERRY_LOG_FORMAT",
        "text, or json: an object in each line, with time, level, logger, message and request_id",
        check.log_format,
    )
    access_log: bool = _setting(
        False,
        "FERRY_ACCESS_LOG",
        "1 logs a line for each HTTP request: client, method, path, status, time, request id",
        check.flag,
    )
    otel_exporter_otlp_endpoint: str = _setting(
        "",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OpenTelemetry collector that is sent traces by OTLP over HTTP, as "
        "`http://127.0.0.1:4318`; unset: nothing is traced. OpenTelemetry's other variables hold "
        "too, as OTEL_SERVICE_NAME",
        check.http_url,
    )
    otel_exporter_otlp_traces_endpoint: str = _setting(
        "",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "the same for traces alone, with its path",
        check.http_url,
    )
    otel_exporter_otlp_protocol: str = _setting(
        "http/protobuf",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        "how the collector is spoken to: no other way is there",
        check.one_of("http/protobuf"),
    )
    otel_traces_sampler_arg: float = _setting(
        1.0,
        "OTEL_TRACES_SAMPLER_ARG",
        "part of the requests that is traced where a collector is named, from 0 to 1, until trace "
        "settings (docs/operating.md) say otherwise",
        check.share,
    )

    @property
    def traces_url(self) -> str:
        """Return where traces are sent, empty for nowhere."""
        if self.otel_exporter_otlp_traces_endpoint or not self.otel_exporter_otlp_endpoint:
            return self.otel_exporter_otlp_traces_endpoint
        return f"{self.otel_exporter_otlp_endpoint.rstrip('/')}/v1/traces"

    @property
    def trace_rate(self) -> int:
        """Return of about how many requests one is traced, 0 for none."""
        share = self.otel_traces_sampler_arg
        return round(min(1 / share, LARGEST_TRACE_RATE)) if share else 0

    @property
    def longest_timeout_seconds(self) -> float:
        """Return the longest deadline that a request may have, its own or the usual one."""
        return max(self.max_request_timeout_seconds, self.request_timeout_seconds)

    @property
    def api_process_count(self) -> int:
        """Return the gunicorn worker processes; the other half of the cores is for the models."""
        return self.api_processes or max(1, default_cores() // 2)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read all settings; raises BadSetting naming the variable and its value.

        Links to Services of Kubernetes are left out; `mention_service_links` tells of them.
        """
        links = service_links(environ)
        environ = {name: value for name, value in environ.items() if name not in links}
        values = {}
        for setting in fields(cls):
            raw = environ.get(setting.metadata["variable"], "")
            if raw:
                values[setting.name] = _checked(setting.metadata, raw)
        _refuse_unknown(environ, {setting.metadata["variable"] for setting in fields(cls)})
        return _for_its_redis(cls(**values))


def _for_its_redis(settings: Settings) -> Settings:
    """Return the settings as a cluster wants them: braces have all keys in one slot of it."""
    if not settings.redis_url or not RedisUrl.of(settings.redis_url).cluster:
        return settings
    if settings.jobs:
        raise BadSetting(
            "REDIS_URL names a cluster, on which jobs cannot run (rq's keys are on many nodes): "
            "set FERRY_JOBS=0, or name another Redis"
        )
    return replace(settings, key_prefix=f"{{{settings.key_prefix.strip('{}')}}}")


def _checked(metadata: Mapping[str, Any], raw: str) -> Any:
    try:
        return metadata["check"](raw)
    except ValueError as error:
        shown = re.sub(r"//.*@", "//...@", raw)  # a password
        raise BadSetting(f"{metadata['variable']}={shown!r}: {error}") from error


def _refuse_unknown(environ: Mapping[str, str], known: set[str]) -> None:
    unknown = {name for name in environ if name.startswith("FERRY_")} - known
    if unknown:
        raise BadSetting(f"unknown settings: {', '.join(sorted(unknown))}")


def service_links(environ: Mapping[str, str]) -> list[str]:
    """Return the variables that Kubernetes set for a Service called `ferry` or `ferry-x`."""
    return sorted(
        name
        for name, value in environ.items()
        if name.startswith("FERRY_") and check.is_service_link(name, value)
    )


def mention_service_links(links: Sequence[str], logger: logging.Logger) -> None:
    """Say which variables were taken for no settings, if there are any."""
    if links:
        logger.warning(
            "%s: set by Kubernetes for a Service, ignored and no settings; "
            "`enableServiceLinks: false` in the pod keeps them away",
            ", ".join(links),
        )


def start(environ: Mapping[str, str]) -> Settings:
    """Read the settings of a process that serves, and log as they say; raises BadSetting.

    Lifts the limit on its open files as well.
    """
    settings = Settings.from_env(environ)
    if not settings.redis_url:
        raise BadSetting("REDIS_URL is not set: `ferry up` sets it, or name a Redis server")
    log_as(settings.log_level, settings.log_format)
    mention_service_links(service_links(environ), log)
    lift_open_files()
    return settings
