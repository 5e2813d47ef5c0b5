"""A worker and an API process that echo bytes: large ones lie beside Redis, somewhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
from redis import Redis
from waiting import wait_until

from api.payloads.binary_tensors import HEADER
from shared.registry.registry import Registry
from shared.request_queue.keys import QueueKeys
from shared.settings import Settings

MODEL = "echo_UINT8"


@dataclass(frozen=True)
class EchoSystem:
    """Both, the master of the API's processes by its id."""

    settings: Settings
    redis: Redis
    gunicorn: int

    def asked(self, data: bytes, *, binary: bool = True) -> HTTPConnection:
        """Return a connection on which a request was sent."""
        parameters = {"binary_data_size": len(data)}
        tensor = {"name": "x", "datatype": "UINT8", "shape": [len(data)], "parameters": parameters}
        asked = {"inputs": [tensor], "parameters": {"binary_data_output": binary}}
        head = json.dumps(asked).encode()
        connection = HTTPConnection("127.0.0.1", self.settings.port, timeout=60)
        headers = {HEADER: str(len(head))}
        connection.request("POST", f"/v2/models/{MODEL}/infer", head + data, headers)
        return connection

    def ask(self, count: int, seed: int, *, binary: bool = True) -> bool:
        """Tell whether a request of so many bytes is answered by the same ones."""
        data = np.random.default_rng(seed).bytes(count)
        connection = self.asked(data, binary=binary)
        try:
            response = connection.getresponse()
            body = response.read()
            if binary:
                return response.status == 200 and body[int(response.headers[HEADER]) :] == data
            return bytes(json.loads(body)["outputs"][0]["data"]) == data
        finally:
            connection.close()

    def instance(self) -> int:
        """Return the process of the instance, once it is ready."""
        registry, found = Registry(self.redis, self.settings.key_prefix), list[int]()

        def look() -> bool:
            found[:] = [each.pid for each in registry.instances()[0] if each.state == "ready"]
            return bool(found)

        wait_until(look, 30, "an instance is ready")
        return found[0]

    def api_processes(self) -> set[int]:
        children = Path(f"/proc/{self.gunicorn}/task/{self.gunicorn}/children").read_text()
        return set(map(int, children.split()))

    def bodies(self) -> list[int]:
        """Return the sizes of the bodies in Redis."""
        keys = QueueKeys(self.settings.key_prefix, f"{MODEL}/1")
        return [self.redis.strlen(name) for name in self.redis.scan_iter(f"{keys.body}*")]
