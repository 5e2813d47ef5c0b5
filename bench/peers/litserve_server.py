"""`resnet18` by LitServe: `python -m bench.peers.litserve_server PORT`."""

import sys
from typing import Any

import litserve
from fastapi import Request

from bench.peers import network


class Classify(litserve.LitAPI):
    """Decodes and classifies the picture in the field `content` of a form."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self.model = network.load("resnet18")

    def decode_request(self, request: Request) -> network.Pixels:
        """Return the network's input for one picture."""
        return network.picture(request["content"].file.read())

    def batch(self, inputs: list[network.Pixels]) -> list[network.Pixels]:
        """Leave a batch to `predict`."""
        return list(inputs)

    def predict(self, batch: list[network.Pixels]) -> list[Any]:
        """Answer a batch of inputs."""
        return network.classes(self.model, batch)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Return each one's answer."""
        return output

    def encode_response(self, output: Any) -> Any:
        """Answer with what `predict` found."""
        return output


if __name__ == "__main__":
    api = Classify(max_batch_size=32, batch_timeout=0.01)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False)
