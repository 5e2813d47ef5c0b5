"""One call of ModelStreamInfer: many requests under way at once, answered in their order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Semaphore, Thread
from typing import NamedTuple

import grpc
from tritonclient.grpc import service_pb2 as proto

from api.infer.public_errors import public_error
from api.rpc.door import Call
from api.rpc.errors import status_code
from api.rpc.inference import Asked, InferCalls
from api.rpc.places import Places
from api.rpc.reading import InferMessage, read_infer
from api.tracing import RequestTrace
from shared.errors import FerryError, QueueFull
from shared.logs import IN_HAND

MAX_STREAM_REQUESTS = 64
"""Requests of one stream under way at a time; those beyond stay unread."""
FINAL = "triton_final_response"
"""Clients of models that answer more than once look for this; here every answer is the last."""
STOPPING = "the server is stopping"


class Entry(NamedTuple):
    """A request that began at a `perf_counter`, as pushed, or the error of its push."""

    request: proto.ModelInferRequest
    pushed: Asked | Exception
    began: float
    trace: RequestTrace | None = None


class Stream:
    """A thread of its own reads and pushes; the call's thread waits for the answers.

    Each request has a place until its model has answered, whether or not the client reads that.
    """

    def __init__(
        self,
        calls: InferCalls,
        places: Places,
        requests: Iterator[bytes],
        call: Call,
        idle_seconds: float,
    ) -> None:
        """Begin nothing yet; nothing is read of `requests` before `answers`."""
        self.moved_at = time.monotonic()
        self.connection = call.context.peer()
        self._calls = calls
        self._places = places
        self._requests = requests
        self._call = call
        self._context = call.context
        self._idle_seconds = idle_seconds
        self._under_way: deque[Asked] = deque()
        self._entries: SimpleQueue[Entry | None] = SimpleQueue()
        self._unread = Semaphore(MAX_STREAM_REQUESTS)
        self._taking = Lock()
        self._all_read = False
        self._ended = False
        self._finishing = False
        self._is_sending = False
        self._reason = ""
        self._refusal: FerryError | None = None

    @property
    def is_idle(self) -> bool:
        """Tell whether no model works for it: its client sends nothing, or takes no answer."""
        return not any(asked.pushed.pending.is_open for asked in list(self._under_way))

    @property
    def _is_cut(self) -> bool:
        """Tell whether the stream was ended from our side before the client's last was answered.

        subtle: the second None is all that then lies unread, or a request came behind the first.
        """
        return self._finishing and not (self._all_read and self._entries.qsize() <= 1)

    def answers(self) -> Iterator[proto.ModelStreamInferResponse]:
        """Yield one answer, or error, for each request, until the client has sent and got all.

        Raises QueueFull when the stream is ended from our side, Unauthorized and Forbidden when its
        key is good no more.
        """
        if not self._context.add_callback(self._leave):
            return
        Thread(target=self._read, name="ferry-stream", daemon=True).start()
        while (entry := self._next_entry()) is not None:
            answer = self._answer(entry)
            self._is_sending = True  # first: `end` looks at it last
            if self._reason:
                break
            yield answer
            self._is_sending = False
            self.moved_at = time.monotonic()
            self._unread.release()
        if self._reason or self._is_cut:  # no request is refused by that
            raise QueueFull(self._reason or STOPPING).of_queue()
        if self._refusal is not None:
            raise self._refusal

    def finish(self) -> None:
        """Read no more, and end once that is answered which was read. For any thread.

        subtle: the reader may be pushing, and what it pushes is answered as well.
        """
        self._finishing = True
        with self._taking:
            self._entries.put(None)

    def end(self, reason: str) -> None:
        """End an idle stream, UNAVAILABLE for `reason`. For any thread.

        Who does not even read its answers is not told why.
        """
        self._reason = reason
        self._entries.put(None)
        if self._is_sending:
            self._context.cancel()

    def _next_entry(self) -> Entry | None:
        try:
            return self._entries.get(timeout=self._idle_seconds)
        except Empty:  # all that came is answered
            self._reason = f"the stream was idle for {self._idle_seconds:g} s, which is the limit"
            return None

    def _read(self) -> None:
        IN_HAND.set((self._call.known_as,))
        try:
            for data in self._requests:
                self.moved_at = time.monotonic()
                self._unread.acquire()
                if not self._take(data):
                    break
            else:
                self._all_read = True
        except grpc.RpcError:
            pass  # the client has left
        finally:
            self._entries.put(None)

    def _take(self, data: bytes) -> bool:
        """Read and push one request; return False when the stream is over, and drop it."""
        if not self._is_let_in():
            return False
        began = time.perf_counter()
        try:
            request = read_infer(data)
        except FerryError as error:
            self._entries.put(Entry(proto.ModelInferRequest(), error, began))
            return True
        key = self._call.key
        if not self._places.take(key, lambda: self._is_over):
            return False
        give_back = partial(self._places.give_back, key)
        with self._taking:
            if self._is_over or not self._is_let_in():  # it may have waited long
                give_back()
                return False
            trace = self._call.begin_trace(request.message.model_name)
            pushed = self._push(request, trace, give_back)
            self._entries.put(Entry(request.message, pushed, began, trace))
        return True

    def _is_let_in(self) -> bool:
        """Ask again whether the call may go on: its key may be another by now, or none."""
        try:
            self._call.let_in()
        except FerryError as error:
            self._refusal = error
        return self._refusal is None

    @property
    def _is_over(self) -> bool:
        return self._ended or self._finishing or bool(self._reason)

    def _push(
        self, request: InferMessage, trace: RequestTrace | None, give_back: Callable[[], None]
    ) -> Asked | Exception:
        remaining_seconds = self._context.time_remaining()
        caller = self._call.caller._replace(trace=trace)
        try:
            asked = self._calls.push(request, remaining_seconds, caller, give_back)
        except Exception as error:  # a border: the request is answered with it, the stream goes on
            give_back()
            return error
        self._under_way.append(asked)
        if self._ended:
            asked.cancel()
        return asked

    def _answer(self, entry: Entry) -> proto.ModelStreamInferResponse:
        response, pushed, status = proto.ModelStreamInferResponse(), entry.pushed, "OK"
        try:
            if isinstance(pushed, Exception):
                raise pushed
            self._calls.respond(pushed, response.infer_response)
            if entry.trace is not None:
                entry.trace.end_rpc(status)
        except Exception as error:  # a border, as above
            ours = public_error(error, self._call.method, self._call.key)
            response.Clear()
            response.error_message, status = ours.message, status_code(ours).name
            response.infer_response.id = entry.request.id
            self._call.refuse_one(error, status, entry.trace)
        if isinstance(pushed, Asked):
            self._under_way.popleft()
        response.infer_response.parameters[FINAL].bool_param = True
        request = entry.request
        self._call.tell(status, entry.began, request.model_name, request.model_version)
        return response

    def _leave(self) -> None:
        """Cancel the requests under way: the call is over, in whatever way."""
        self._ended = True
        for asked in list(self._under_way):
            asked.cancel()
            asked.held.close()
        self._unread.release()  # the reader may wait for one
