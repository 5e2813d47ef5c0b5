"""The gRPC server: its threads, its limits, its orderly end.

Apart from `__main__`, which importing would start.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from tritonclient.grpc.service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

from api.rpc.health import MAX_WATCHES, Health
from api.rpc.service import GRPCInferenceService
from api.services import Services
from shared.errors import BadSetting
from shared.settings import Settings

log = logging.getLogger(__name__)

SPARE_THREADS = 16
"""For health checks, metadata and refusals while all infer calls that may be are under way."""
REFUSING_SECONDS = 0.5


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
        self._service = GRPCInferenceService(services)
        self._health = Health(services.catalog, services.readiness, services.guard)
        # What is under way is answered by its deadline.
        self._grace_seconds = settings.request_timeout_seconds + 1
        threads = settings.grpc_threads + SPARE_THREADS
        self._server = grpc.server(
            ThreadPoolExecutor(threads + MAX_WATCHES, thread_name_prefix="ferry-call"),
            maximum_concurrent_rpcs=threads + MAX_WATCHES + settings.max_waiting,
            options=[
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                # Else a second server takes the port too, and half of the calls.
                ("grpc.so_reuseport", 0),
                # Clients may ping as often as they like, also between calls. The library would
                # end a connection that is pinged every ten seconds, with the streams on it.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_ping_strikes", 0),
            ],
        )
        add_GRPCInferenceServiceServicer_to_server(self._service, self._server)
        self._server.add_generic_rpc_handlers((self._health.handler(),))
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

    def _listen(self, address: str) -> None:
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise BadSetting(f"FERRY_GRPC_PORT: cannot listen on {address}: {error}") from error
        log.info("gRPC listens on %s", address)
