"""The gRPC server: its threads, its limits, its orderly end.

Apart from `__main__`, which importing would start.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

from api.rpc.door import MOST_ARRIVING, MOST_FIRST, Door
from api.rpc.health import MAX_WATCHES, PACKAGE, Health
from api.rpc.places import MAX_STREAMS
from api.rpc.service import SERVICE, GRPCInferenceService
from api.services import Services
from shared.errors import BadSetting
from shared.settings import Settings

log = logging.getLogger(__name__)

SPARE_THREADS = 16
"""For health checks, metadata and refusals while all infer calls that may be are under way."""
OTHER_THREADS = SPARE_THREADS + MAX_WATCHES + MAX_STREAMS + MOST_ARRIVING + MOST_FIRST
"""Those that no infer call can have."""
REFUSING_SECONDS = 0.5
PING_SECONDS, ANSWER_SECONDS = 60.0, 20.0
"""A connection on which nothing came for so long is asked whether it is there, and closed where it
does not answer."""
MOST_PENDING = 16_384
"""Calls that the library has read and not yet handed to us: beyond half of them it resets some by
chance, by itself beyond a thousand, and says CANCELLED, after which nobody tries again."""
NO_CALL_SECONDS = 900.0
"""A connection without a call for so long is closed; clients open another by themselves."""


class Server:
    """One process's gRPC server; opens no connection to Redis before the first call.

    Every call has a thread, started when it is first needed. A few are spare, so that what comes
    beyond the infer calls that may be is refused by us. Should these hang too, in a Redis that
    does, calls wait for threads, as many as FERRY_MAX_WAITING; the library refuses the rest
    (RESOURCE_EXHAUSTED).
    """

    def __init__(self, settings: Settings) -> None:
        """Listen at the settings' host and gRPC port; raises BadSetting when that cannot be."""
        services = Services.of(settings, service="ferry-grpc")
        self._tracing = services.tracing
        self._service = GRPCInferenceService(services)
        self._health = Health(services.catalog, services.readiness, services.guard)
        # What is under way is answered by its deadline.
        self._grace_seconds = settings.request_timeout_seconds + 1
        # Infer calls under way, and as many that arrive.
        threads = 2 * settings.grpc_threads + OTHER_THREADS
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="ferry-call"),
            maximum_concurrent_rpcs=threads + settings.max_waiting,
            options=[
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                # Else a second server takes the port too, and half of the calls.
                ("grpc.so_reuseport", 0),
                # Clients may ping as often as they like, also between calls. The library would
                # end a connection that is pinged every ten seconds, with the streams on it.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_ping_strikes", 0),
                ("grpc.keepalive_time_ms", int(1000 * PING_SECONDS)),
                ("grpc.keepalive_timeout_ms", int(1000 * ANSWER_SECONDS)),
                ("grpc.http2.max_pings_without_data", 0),  # else the library gives up after two
                ("grpc.server.max_pending_requests", MOST_PENDING // 2),
                ("grpc.server.max_pending_requests_hard_limit", MOST_PENDING),
                ("grpc.max_connection_idle_ms", int(1000 * NO_CALL_SECONDS)),
            ],
        )
        door = Door(services)
        for name, handlers in (
            (SERVICE.full_name, self._service.handlers(door)),
            (f"{PACKAGE}.Health", self._health.handlers(door)),
        ):
            self._server.add_registered_method_handlers(name, handlers)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._listen(f"{host}:{settings.grpc_port}")

    def start(self) -> None:
        """Take calls."""
        self._server.start()

    def stop(self) -> None:
        """Refuse new calls; return when those under way are answered, or past their deadline.

        subtle: the library cancels what has arrived and not begun at the moment of its stop, and
        CANCELLED tells nobody to ask elsewhere. So the calls that come are refused by us, for a
        while; by then most clients know. From the stop on their channels look for another server.
        """
        self._service.stop()
        self._health.stop()
        time.sleep(REFUSING_SECONDS)
        self._server.stop(self._grace_seconds).wait()
        if self._tracing is not None:
            self._tracing.close()

    def _listen(self, address: str) -> None:
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise BadSetting(f"FERRY_GRPC_PORT: cannot listen on {address}: {error}") from error
        log.info("gRPC listens on %s", address)
