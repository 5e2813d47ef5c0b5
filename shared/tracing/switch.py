"""Whether this process makes spans: the extra `otel` is imported here, where it is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.errors import BadSetting

if TYPE_CHECKING:
    from shared.tracing.tracer import Tracer


def tracer_of(traces_url: str, service: str) -> Tracer | None:
    """Return what makes a process's spans, as `service`; None where no collector is named.

    Raises BadSetting without the packages.
    """
    if not traces_url:
        return None
    try:
        from shared.tracing.tracer import Tracer, processor_of  # noqa: PLC0415
    except ImportError as error:
        raise BadSetting(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, and {error.name} is not installed: "
            "`pip install 'ferry[otel]'`, or unset it"
        ) from error
    return Tracer(service, processor_of(traces_url))
