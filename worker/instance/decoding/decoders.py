"""Decodes the pictures of a batch that came as they are, in processes beside the instance.

    API: header read, file sent | Redis | lane: claim, ask the decoders, wait | stack, device ...

A lane that waits holds nothing up: with two of them one computes meanwhile. A picture that takes
its decoder down fails its request alone, as at the API.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from signal import SIGPROF
from typing import NamedTuple

import msgpack

from shared.errors import BadRequest, FerryError, QueueFull, by_code
from shared.inputs.pictures import place_of
from shared.inputs.reader_process import UNREADABLE, ReaderProcess
from shared.messages import Tensor
from shared.model_spec import ImageInput
from worker.instance.batch_parts import DecodedRequest
from worker.instance.decoding.child import ERROR
from worker.job import InstanceJob
from worker.repository.config.image import decoder_count

log = logging.getLogger(__name__)

DECODER = "worker.instance.decoding.child"
LONGEST_DECODING_SECONDS = 30.0
"""For a decoder that has stopped without taking processor time."""
START_AGAIN_SECONDS = 0.2
NO_DECODER = "no process can be started here that decodes pictures: the machine has too much to do"
DECODER_TRIES = 2
"""Somebody else may have ended a decoder; one that ran out of its time gets no second one."""


class Pictures(NamedTuple):
    """What became of a batch's requests: those with pixels, and the errors of the others by id."""

    requests: list[DecodedRequest]
    errors: dict[str, FerryError]


class Decoders:
    """An instance's decoders, which its lanes share; they start when the first picture comes.

    They end with the instance's process, whose end their lines hear.
    """

    def __init__(self, image: ImageInput, count: int) -> None:
        """Decode for a model's `image`, at most `count` pictures at once."""
        self._image = image
        self._count = count
        self._threads = ThreadPoolExecutor(count, "ferry-decoder")
        self._description = image.model_dump_json()
        self._idle: list[ReaderProcess] = []

    @classmethod
    def of(cls, job: InstanceJob) -> Decoders | None:
        """Return those of a model that takes pictures; they start now if its config says so."""
        spec = job.spec
        if spec.image is None or spec.steps:
            return None
        made = cls(spec.image, decoder_count(spec.parameters, job.placement.threads))
        if spec.image.decode_in == "worker":
            made.start()
        return made

    def start(self) -> None:
        """Start all of them; nobody waits until they are there."""
        self._idle += [ReaderProcess(DECODER) for _ in range(self._count)]

    def decoded(self, requests: list[DecodedRequest]) -> Pictures:
        """Return the requests with pixels in the place of pictures, all in their order."""
        begun = [self._begun(one) for one in requests]
        if not any(begun):  # fast: a model may get tensors only
            return Pictures(requests, {})
        found = Pictures([], {})
        for one, pixels in zip(requests, begun, strict=True):
            try:
                found.requests.append(self._with_pixels(one, pixels) if pixels else one)
            except FerryError as error:
                found.errors[one.claimed.id] = error
        return found

    def _begun(self, one: DecodedRequest) -> list[Future[memoryview]]:
        """Have a request's pictures decoded, if it brings any that are not."""
        files = [one.arrays[each.name] for each in one.request.inputs if is_encoded(each)]
        if not files:
            return []
        where = place_of(len(files[0]))
        return [
            self._threads.submit(self._decode, file, where.format(number))
            for number, file in enumerate(files[0])
        ]

    def _with_pixels(
        self, one: DecodedRequest, begun: Sequence[Future[memoryview]]
    ) -> DecodedRequest:
        """Wait for a request's pixels; raises the error of one of its pictures."""
        image = self._image
        shape = (len(begun), image.height, image.width, len(image.channels))
        pixels = Tensor(
            image.input, "UINT8", shape, b"".join([each.result() for each in begun]), True
        )
        return DecodedRequest(
            one.claimed,
            one.request._replace(
                inputs=tuple([pixels if is_encoded(each) else each for each in one.request.inputs])
            ),
            {**one.arrays, image.input: pixels.array()},
        )

    def _decode(self, file: bytes, where: str) -> memoryview:
        """Return a picture's pixels; raises the error that it is to be answered with."""
        head = msgpack.packb([self._description, where])
        until, decoder = time.monotonic() + LONGEST_DECODING_SECONDS, None
        for _ in range(DECODER_TRIES):
            try:
                decoder = self._taken()
            except OSError as error:  # too many processes, or files, or too little memory
                log.warning("no process can be started that decodes pictures: %s", error)
                time.sleep(START_AGAIN_SECONDS)
                continue
            reply = decoder.ask(head, [file], until)
            if reply is not None:
                self._idle.append(decoder)
                return _pixels(reply)
            ended = decoder.end()
            log.warning("a decoder of pictures ended with %d, another takes its place", ended)
            if ended == -SIGPROF or time.monotonic() > until:
                break
        else:
            if decoder is None:
                raise QueueFull(NO_DECODER)
        raise BadRequest(UNREADABLE)

    def _taken(self) -> ReaderProcess:
        while self._idle:
            with suppress(IndexError):  # another thread may have taken the last one meanwhile
                decoder = self._idle.pop()
                if not decoder.has_ended:
                    return decoder
                decoder.end()
        return ReaderProcess(DECODER)


def is_encoded(tensor: Tensor) -> bool:
    """Tell whether an input is pictures as they came, see `shared.inputs.pictures.as_wanted`."""
    return tensor.pixels and tensor.datatype == "BYTES"


def _pixels(reply: memoryview) -> memoryview:
    if reply[:1] == ERROR:
        raise by_code(*msgpack.unpackb(reply[1:]))
    return reply[1:]
