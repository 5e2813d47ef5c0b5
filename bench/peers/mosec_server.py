"""`tiny` or `resnet18` by Mosec: `python -m bench.peers.mosec_server MODEL --port PORT`."""

import sys
from typing import Any

from mosec import Server, Worker

from bench.peers import network

MODEL = sys.argv.pop(1)


class Numbers(Worker):
    """Answers rows of numbers."""

    def __init__(self) -> None:
        """Load the model."""
        self.model = network.load("tiny")

    def forward(self, data: list[dict[str, list[float]]]) -> list[dict[str, list[float]]]:
        """Answer a batch of `{"data": [...]}`."""
        found = network.numbers(self.model, [each["data"] for each in data])
        return [{"output": each} for each in found]


class Decode(Worker):
    """Decodes pictures, each by itself."""

    def deserialize(self, data: bytes) -> bytes:
        """Leave a body as it came."""
        return data

    def forward(self, data: bytes) -> network.Pixels:
        """Return the network's input for one picture."""
        return network.picture(data)


class Classify(Worker):
    """Runs the network."""

    def __init__(self) -> None:
        """Load the model."""
        self.model = network.load("resnet18")

    def forward(self, data: list[network.Pixels]) -> list[Any]:
        """Answer a batch of inputs."""
        return network.classes(self.model, data)


if __name__ == "__main__":
    server = Server()
    if MODEL == "tiny":
        server.append_worker(Numbers, num=1, max_batch_size=64, max_wait_time=1)
    else:
        server.append_worker(Decode, num=2)
        server.append_worker(Classify, num=2, max_batch_size=32, max_wait_time=10)
    server.run()
