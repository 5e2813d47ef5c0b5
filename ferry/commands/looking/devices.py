"""`ferry devices`: this machine's GPUs, whether models can run on them, and if not, why."""

from __future__ import annotations

from collections.abc import Mapping

from ferry.commands.tables import Column, show
from ferry.errors import EXIT_FAILED
from shared.registry.device_report import DeviceReport
from shared.settings import Settings
from worker.preflight.look import in_own_process
from worker.repository.check import process_environment

GIBIBYTE = 2**30


def _figure(name: str, digits: int = 0) -> Column:
    headings = {
        "utilisation_percent": "busy %", "power_watts": "W", "temperature_celsius": "°C",
        "uncorrected_errors": "errors",
    }  # fmt: skip

    def content(row: Mapping[str, object]) -> str:
        value = row[name]
        return f"{value:.{digits}f}" if isinstance(value, int | float) else ""

    return Column(headings[name], content, is_number=True)


DEVICE_COLUMNS = (
    Column("device", lambda row: f"cuda:{row['index']}" if row["index"] >= 0 else "unseen"),
    Column("name", lambda row: row["name"]),
    Column("GiB", lambda row: f"{row['memory_bytes'] / GIBIBYTE:.1f}", is_number=True),
    Column(
        "used",
        lambda row: "" if row["used_bytes"] is None else f"{row['used_bytes'] / GIBIBYTE:.1f}",
        is_number=True,
    ),
    _figure("utilisation_percent"),
    _figure("power_watts"),
    _figure("temperature_celsius"),
    _figure("uncorrected_errors"),
    Column("mode", lambda row: row["compute_mode"]),
    Column("uuid", lambda row: row["uuid"]),
    Column("note", lambda row: row["fault"] or ("" if row["used"] else "not this worker's")),
)


def devices(environ: Mapping[str, str], *, as_json: bool) -> int:
    """Look at this machine's GPUs as a worker does at its start, and print what is found.

    Returns 1 where GPUs are there and cannot be used. Raises BadSetting.
    """
    gpus = Settings.from_env(environ).gpus
    report = in_own_process(process_environment(environ), gpus)
    if as_json:
        print(report.model_dump_json(indent=2))
    else:
        rows = [each.model_dump() for each in report.devices]
        show(rows, DEVICE_COLUMNS, as_json=False, nothing="no GPU")
        for line in filter(None, (report.reason, report.note, _versions(report))):
            print(line)
    return EXIT_FAILED if report.reason else 0


def _versions(report: DeviceReport) -> str:
    driver = f"driver {report.driver or 'none'}"
    if not report.torch_cuda:
        return f"{driver}, torch {report.torch} for the CPU"
    return (
        f"{driver}, torch {report.torch} for CUDA {report.torch_cuda}, which needs driver "
        f"{report.needed_driver or 'unknown'} or newer; ONNX models run on the "
        f"{'GPU' if report.onnxruntime_gpu else 'CPU (onnxruntime-gpu is not installed)'}"
    )
