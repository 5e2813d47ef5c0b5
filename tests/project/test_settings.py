"""A bad setting stops the start and names variable and value; an unset one has its default."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from ferry_processes import environment, free_port

from api.app import create_app
from api.routes.operations import STREAMS
from api.rpc.server import Server
from shared.errors import BadSetting
from shared.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
BAD = [
    ("REDIS_URL", "localhost:6379"),
    ("REDIS_URL", "http://localhost"),
    ("FERRY_HOST", " "),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318"),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
    ("FERRY_PORT", "0"),
    ("FERRY_PORT", "65536"),
    ("FERRY_PORT", "http"),
    ("FERRY_GRPC_PORT", "65536"),
    ("FERRY_GRPC_THREADS", "0"),
    ("FERRY_GRPC_IDLE_SECONDS", "0"),
    ("FERRY_HOSTS", "http://ferry"),
    ("FERRY_HOSTS", "ferry:8000"),
    ("FERRY_HOSTS", "*,ferry"),
    ("FERRY_KEYS_FILE", " "),
    ("FERRY_INSECURE", "yes"),
    ("FERRY_DASHBOARD_PORT", "-1"),
    ("FERRY_MODELS", "  "),
    ("FERRY_MODEL_CONTROL_MODE", "all"),
    ("FERRY_LOAD_MODELS", "a,../b"),
    ("FERRY_POLL_SECONDS", "0"),
    ("FERRY_STANDBY_SECONDS", "-1"),
    ("FERRY_CANARY_SECONDS", "-1"),
    ("FERRY_CANARY_PERCENT", "-1"),
    ("FERRY_SHADOW_EXAMPLES", "-1"),
    ("FERRY_ALLOW_PICKLE", "please"),
    ("FERRY_ALLOW_MACHINE_CODE", "2"),
    ("FERRY_REQUIRE_VERIFIED", "maybe"),
    ("FERRY_STATE_DIR", "\t"),
    ("FERRY_API_PROCESSES", "-1"),
    ("FERRY_API_CONNECTIONS", "0"),
    ("FERRY_METRICS_PORT", "65536"),
    ("FERRY_READINESS", "all,*"),
    ("FERRY_MAX_BODY_BYTES", "64M"),
    ("FERRY_MAX_JSON_BYTES", "64M"),
    ("FERRY_MAX_BODIES_BYTES", "64M"),
    ("FERRY_MAX_BODY_SECONDS", "0"),
    ("FERRY_MAX_GROWTH_BYTES", "-1"),
    ("FERRY_MAX_REQUEST_TIMEOUT_SECONDS", "0"),
    ("FERRY_MAX_BODY_BYTES", "1023"),
    ("FERRY_MAX_IMAGE_PIXELS", "0"),
    ("FERRY_MAX_QUEUE_SIZE", "0"),
    ("FERRY_MAX_QUEUE_BYTES", "1023"),
    ("FERRY_MAX_KEPT_BYTES", "1023"),
    ("FERRY_MAX_WAITING", "0"),
    ("FERRY_SHARED_BODY_BYTES", "-1"),
    ("FERRY_BODY_URLS", "localhost:6379"),
    ("FERRY_BODY_URLS", "redis://a,redis+cluster://b"),
    ("FERRY_BODY_URLS", "redis://a redis://a"),
    ("FERRY_BODY_URLS", " , "),
    ("FERRY_DURABLE", "yes"),
    ("FERRY_REQUEST_TIMEOUT_SECONDS", "0"),
    ("FERRY_REQUEST_TIMEOUT_SECONDS", "nan"),
    ("FERRY_REQUEST_TIMEOUT_SECONDS", "inf"),
    ("FERRY_REQUEST_TIMEOUT_SECONDS", "30s"),
    ("FERRY_RESULT_TTL_SECONDS", "-1"),
    ("FERRY_CACHE_BYTES", "1023"),
    ("FERRY_CACHE_SECONDS", "0"),
    ("FERRY_HEARTBEAT_SECONDS", "0"),
    ("FERRY_MAX_BATCH_SECONDS", "no"),
    ("FERRY_MAX_LOAD_SECONDS", "0"),
    ("FERRY_MIN_READY_SHARE", "1.5"),
    ("FERRY_ALLOW_CPU_FALLBACK", "yes"),
    ("FERRY_CPU_THREADS", "-1"),
    ("FERRY_GPUS", "0,first"),
    ("FERRY_GPUS", "1,1"),
    ("FERRY_GPUS", "none,0"),
    ("FERRY_JOBS", "yes"),
    ("FERRY_JOB_INPUTS", " "),
    ("FERRY_JOB_OUTPUTS", " "),
    ("FERRY_JOB_FILES", " "),
    ("FERRY_JOB_MODULES", "a,b-c"),
    ("FERRY_JOB_MODULES", "a..b"),
    ("FERRY_JOB_UPLOAD_BYTES", "1M"),
    ("FERRY_JOB_TIMEOUT_SECONDS", "0"),
    ("FERRY_JOB_KEEP_SECONDS", "-1"),
    ("FERRY_JOB_KEEP_COUNT", "0"),
    ("FERRY_MAX_JOBS", "0"),
    ("FERRY_JOB_CORES", "0"),
    ("FERRY_JOB_NICE", "20"),
    ("FERRY_KEY_PREFIX", "a:b"),
    ("FERRY_KEY_PREFIX", "a b"),
    ("FERRY_KEY_PREFIX", "{a}b"),
    ("FERRY_LOG_LEVEL", "LOUD"),
    ("FERRY_LOG_FORMAT", "xml"),
    ("FERRY_ACCESS_LOG", "yes"),
]


@pytest.mark.parametrize(("variable", "value"), BAD)
def test_a_bad_value_is_refused_naming_variable_and_value(variable: str, value: str) -> None:
    with pytest.raises(BadSetting) as caught:
        Settings.from_env({variable: value})

    assert f"{variable}={value!r}: " in caught.value.message


NUMBERS = {
    each.metadata["variable"]: each.name
    for each in fields(Settings)
    if type(each.default) in (int, float)
}
EXTREMES = [
    "inf", "-inf", "nan", "1e308", "1e-320", "1e-9", "-0", "-1", "0", "1", "1e6", "2e6", "3e8",
    "1_000", " 5 ", "0x10", "9" * 5000, "\u0663", str(2**31 - 1), str(2**31), str(2**40),
    str(2**53), str(2**63), str(2**64), "2000000", "315360000",
]  # fmt: skip


@pytest.mark.parametrize("value", EXTREMES)
def test_any_number_is_refused_in_a_sentence_or_served(redis_url: str, value: str) -> None:
    """Some were passed on to what holds them in fewer bits, and that raised at the start."""
    found = {}
    for variable, name in NUMBERS.items():
        try:
            found[name] = getattr(Settings.from_env({variable: value}), name)
        except BadSetting as error:
            assert f"{variable}=" in str(error) and "must be" in str(error)
    ports = {name: free_port() for name in ("port", "grpc_port", "dashboard_port")}
    settings = replace(Settings(redis_url=redis_url, key_prefix="extremes", **found), **ports)

    Server(settings)
    create_app(settings).extensions[STREAMS].close()


def test_every_setting_has_a_bad_value_in_this_test() -> None:
    tested = {variable for variable, _ in BAD}

    assert tested == {setting.metadata["variable"] for setting in fields(Settings)}


def test_an_unknown_ferry_variable_is_refused() -> None:
    with pytest.raises(BadSetting, match="FERRY_PROT"):
        Settings.from_env({"FERRY_PROT": "8000"})


def test_other_variables_are_none_of_our_business() -> None:
    assert Settings.from_env({"PATH": "/bin", "PORT": "http"}) == Settings()


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.from_env({"REDIS_URL": "", "FERRY_PORT": ""}) == Settings()


def test_values_become_their_own_types() -> None:
    settings = Settings.from_env(
        {
            "REDIS_URL": "redis://cache:6379/1",
            "FERRY_PORT": "9000",
            "FERRY_REQUEST_TIMEOUT_SECONDS": "2.5",
            "FERRY_LOG_LEVEL": "debug",
        }
    )

    assert settings == Settings(
        redis_url="redis://cache:6379/1",
        port=9000,
        request_timeout_seconds=2.5,
        log_level="DEBUG",
    )


def test_settings_survive_the_way_through_the_environment() -> None:
    settings = Settings(redis_url="unix:///tmp/valkey.sock", port=9001, max_body_bytes=4096)

    assert Settings.from_env(environment(settings)) == settings


def test_every_setting_says_what_it_does() -> None:
    for setting in fields(Settings):
        assert setting.metadata["effect"], setting.name
        name = setting.name.upper()
        assert setting.metadata["variable"] in {"REDIS_URL", f"FERRY_{name}", name}


@pytest.mark.parametrize("command", [["-m", "worker"], ["-m", "gunicorn", "api.wsgi:app"]])
def test_a_bad_value_stops_the_start(command: list[str]) -> None:
    if "gunicorn" in command:
        command = [*command, "--config", "gunicorn.conf.py"]
    ended = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"REDIS_URL": "redis://127.0.0.1:1", "FERRY_PORT": "http"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode != 0
    assert "FERRY_PORT='http'" in ended.stderr
