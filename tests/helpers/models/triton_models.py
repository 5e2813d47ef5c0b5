"""Python models as people write them for Triton, to be served as they stand."""

ADD_SUB = '''
import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Adds and subtracts; keeps the output types of its configuration."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        auto_complete_model_config.set_max_batch_size(8)
        return auto_complete_model_config

    def initialize(self, args):
        self.args = args
        self.model_config = model_config = json.loads(args["model_config"])
        output0_config = pb_utils.get_output_config_by_name(model_config, "OUTPUT0")
        output1_config = pb_utils.get_output_config_by_name(model_config, "OUTPUT1")
        self.output0_dtype = pb_utils.triton_string_to_numpy(output0_config["data_type"])
        self.output1_dtype = pb_utils.triton_string_to_numpy(output1_config["data_type"])

    def execute(self, requests):
        responses = []
        for request in requests:
            in_0 = pb_utils.get_input_tensor_by_name(request, "INPUT0")
            in_1 = pb_utils.get_input_tensor_by_name(request, "INPUT1")
            out_0, out_1 = (
                in_0.as_numpy() + in_1.as_numpy(),
                in_0.as_numpy() - in_1.as_numpy(),
            )
            out_tensor_0 = pb_utils.Tensor("OUTPUT0", out_0.astype(self.output0_dtype))
            out_tensor_1 = pb_utils.Tensor("OUTPUT1", out_1.astype(self.output1_dtype))
            responses.append(
                pb_utils.InferenceResponse(output_tensors=[out_tensor_0, out_tensor_1])
            )
        return responses

    def finalize(self):
        print("Cleaning up...")
'''

STRINGS = '''
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Upper case, one response per request."""

    def execute(self, requests):
        responses = []
        for request in requests:
            texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
            upper = [text.decode("utf-8").upper().encode("utf-8") for text in texts.reshape(-1)]
            lengths = np.array([len(text) for text in upper], dtype=np.int32)
            responses.append(
                pb_utils.InferenceResponse(
                    output_tensors=[
                        pb_utils.Tensor("UPPER", np.array([upper], dtype=object).reshape(-1, 1)),
                        pb_utils.Tensor("LENGTH", lengths.reshape(texts.shape)),
                    ]
                )
            )
        return responses
'''

PICKY = '''
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Fails single requests, and whole batches when 13 is among the values."""

    def initialize(self, args):
        self.logger = pb_utils.Logger
        self.logger.log_info(f"{args['model_name']} {args['model_version']} starts")

    def execute(self, requests):
        print(f"{len(requests)} requests", flush=True)
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            if (x == 13).any():
                raise RuntimeError("cannot stand 13")
            if (x < 0).any():
                error = pb_utils.TritonError("negative", pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=error))
            elif (x == 0).any():
                responses.append(
                    pb_utils.InferenceResponse([], error=pb_utils.TritonError("zero"))
                )
            else:
                responses.append(
                    pb_utils.InferenceResponse([pb_utils.Tensor("y", 2 * x)])
                )
        return responses
'''

DLPACK = '''
import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack, to_dlpack


class TritonPythonModel:
    """A torch module over DLPack, only for the outputs that are asked for."""

    def initialize(self, args):
        self.device = "cuda" if args["model_instance_kind"] == "GPU" else "cpu"
        self.model = torch.nn.Linear(2, 2, bias=False).to(self.device)
        torch.nn.init.eye_(self.model.weight)

    def execute(self, requests):
        responses = []
        for request in requests:
            x = from_dlpack(pb_utils.get_input_tensor_by_name(request, "x").to_dlpack())
            outputs = []
            if "y" in request.requested_output_names():
                y = self.model(x.to(self.device))
                outputs.append(pb_utils.Tensor.from_dlpack("y", to_dlpack(y.detach())))
            if "z" in request.requested_output_names():
                outputs.append(pb_utils.Tensor.from_dlpack("z", x * 3))
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
'''

BLS = '''
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Asks another model."""

    def execute(self, requests):
        responses = []
        for request in requests:
            inner = pb_utils.InferenceRequest(
                model_name="other",
                requested_output_names=["y"],
                inputs=[pb_utils.get_input_tensor_by_name(request, "x")],
            )
            response = inner.exec()
            responses.append(response)
        return responses
'''

ASYNC_BLS = '''
import asyncio

import triton_python_backend_utils as pb_utils

from shared import STEPS


class TritonPythonModel:
    """Asks another model several times at once, and says what went wrong."""

    async def execute(self, requests):
        return await asyncio.gather(*[self.answer(request) for request in requests])

    async def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x")
        value = x.as_numpy().flat[0]
        names = {90: "nowhere", 91: "asks", 92: "broken"}
        if value == 93:
            x = pb_utils.Tensor("x", x.as_numpy()[:, :1])
        asked = [
            pb_utils.InferenceRequest(
                model_name=names.get(value, "double"),
                requested_output_names=["y" if value != 94 else "z"],
                inputs=[x],
                model_version=7 if value == 95 else -1,
                timeout=1 if value == 96 else 0,
            ).async_exec(decoupled=True)
            for _ in range(STEPS)
        ]
        responses = [each for found in await asyncio.gather(*asked) for each in found]
        for response in responses:
            if response.has_error():
                error = pb_utils.TritonError(
                    f"{response.error().code()}: {response.error().message()}",
                    pb_utils.TritonError.INVALID_ARG,
                )
                return pb_utils.InferenceResponse(error=error)
        found = [pb_utils.get_output_tensor_by_name(each, "y").as_numpy() for each in responses]
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", sum(found))])
'''

ASYNC = '''
import asyncio

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """A coroutine, with a lock of its own loop and something that goes on between batches."""

    async def initialize(self, args):
        self.lock = asyncio.Lock()
        self.ticks = 0
        self.ticking = asyncio.create_task(self.tick())

    async def tick(self):
        while True:
            await asyncio.sleep(0.001)
            self.ticks += 1

    async def double(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        async with self.lock:
            await asyncio.sleep(0)
        if (x == 13).any():
            raise SystemExit("cannot stand 13")
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", 2 * x)])

    async def execute(self, requests):
        return await asyncio.gather(*[self.double(request) for request in requests])

    async def finalize(self):
        self.ticking.cancel()
        print("finalized")
'''

SENDER = '''
import threading

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Sends its responses, from threads that outlive `execute`."""

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            threading.Thread(target=self.answer, args=(sender, x), daemon=True).start()

    def answer(self, sender, x):
        response = pb_utils.InferenceResponse([pb_utils.Tensor("y", 2 * x)])
        if (x > 0).all():
            sender.send(response)
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
'''
