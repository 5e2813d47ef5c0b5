"""One call of ModelStreamInfer: many requests under way at once, answered in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Semaphore, Thread

import grpc
from tritonclient.grpc import service_pb2 as proto

from api.infer.public_errors import public_error
from api.rpc.inference import Asked, InferCalls
from shared.access.api_key import ApiKey

MAX_STREAM_REQUESTS = 64
"""Requests of one stream under way at a time; those beyond stay unread."""
FINAL = "triton_final_response"
"""Clients of models that answer more than once look for this; here every answer is the last."""
Entry = tuple[str, Asked | Exception]
"""A request's id, and the pushed request or the error of its push."""


class Stream:
    """A thread of its own reads and pushes; the call's thread waits for the answers."""

    def __init__(
        self,
        calls: InferCalls,
        requests: Iterator[proto.ModelInferRequest],
        context: grpc.ServicerContext,
        key: ApiKey | None = None,
    ) -> None:
        """Begin nothing yet; `key` is what the stream's call came with."""
        self._key = key
        self._calls = calls
        self._requests = requests
        self._context = context
        self._under_way: deque[Asked] = deque()
        self._entries: SimpleQueue[Entry | None] = SimpleQueue()
        self._places = Semaphore(MAX_STREAM_REQUESTS)
        self._all_read = False
        self._ended = False
        self._finishing = False

    @property
    def cut(self) -> bool:
        """Tell whether the stream was ended from our side before the client's last was answered.

        subtle: the second None is all that then lies unread, or a request came behind the first.
        """
        return self._finishing and not (self._all_read and self._entries.qsize() <= 1)

    def answers(self) -> Iterator[proto.ModelStreamInferResponse]:
        """Yield one answer, or error, for each request, until the client has sent and got all."""
        if not self._context.add_callback(self._leave):
            return
        Thread(target=self._read, name="ferry-stream", daemon=True).start()
        while (entry := self._entries.get()) is not None:
            yield self._answer(*entry)
            self._places.release()

    def finish(self) -> None:
        """Read no more, and end once that is answered which was read. For any thread."""
        self._finishing = True
        self._entries.put(None)

    def _read(self) -> None:
        try:
            for request in self._requests:
                self._places.acquire()
                if self._ended or self._finishing:
                    break
                self._entries.put((request.id, self._push(request)))
            else:
                self._all_read = True
        except grpc.RpcError:
            pass  # the client has left
        finally:
            self._entries.put(None)

    def _push(self, request: proto.ModelInferRequest) -> Asked | Exception:
        try:
            asked = self._calls.push(request, self._context.time_remaining(), self._key)
        except Exception as error:  # a border: the request is answered with it, the stream goes on
            return error
        self._under_way.append(asked)
        if self._ended:
            asked.cancel()
        return asked

    def _answer(self, request_id: str, pushed: Asked | Exception) -> proto.ModelStreamInferResponse:
        response = proto.ModelStreamInferResponse()
        try:
            if isinstance(pushed, Exception):
                raise pushed
            self._calls.respond(pushed, response.infer_response)
        except Exception as error:  # a border, as above
            response.Clear()
            response.error_message = public_error(error, "ModelStreamInfer", self._key).message
            response.infer_response.id = request_id
        if isinstance(pushed, Asked):
            self._under_way.popleft()
        response.infer_response.parameters[FINAL].bool_param = True
        return response

    def _leave(self) -> None:
        """Cancel the requests under way: the call is over, in whatever way."""
        self._ended = True
        for asked in list(self._under_way):
            asked.cancel()
            asked.held.close()
        self._places.release()  # the reader may wait for one
