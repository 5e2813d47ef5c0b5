"""Embeds texts: one request of up to 2048 is cut into pieces that travel beside other clients'.

A piece is a quarter of a batch. All but one of them wait on the queue of bulk jobs, behind
everybody else's requests, and travel with each other only; the one takes its turn among those, and
leaves room in their batch, so that a model which is always busy answers in the end. A few batches
are under way at a time: what is not needed yet is not in anybody's way, and nothing of it need be
taken back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from math import ceil
from threading import Event
from typing import Any, NamedTuple

from api.access.fair_line import ASKING
from api.access.guard import KEY
from api.infer.answer import HttpAnswer
from api.infer.async_answers import AsyncAnswers
from api.infer.inference import IDEMPOTENCY_KEY, checked_version
from api.infer.options import RequestOptions, options_of
from api.infer.question import Question
from api.infer.queues import Queues
from api.payloads.embeddings import (
    EmbeddingBody,
    Text,
    check_dimensions,
    cut_vectors,
    embedding_list,
    written_vectors,
)
from shared.access.admission import Admission
from shared.access.api_key import ApiKey
from shared.bodies.turns import let_others
from shared.errors import BadRequest, RequestExpired
from shared.inputs.texts import TokenizerCache
from shared.messages import InferResult
from shared.model_spec import ModelSpec, TensorSpec
from shared.registry.catalog import Catalog
from shared.registry.registry import Registry
from shared.request_queue.api_end import PendingRequest

PIECES_OF_BATCH = 4
MAX_PIECE_ROWS = 32
"""So many texts are tokenized at once, some milliseconds, in which nobody else has a turn."""
LEAST_BATCHES = 3
"""Batches under way: one that runs, one that waits for it, one that is being answered."""


class Embeddings:
    """Answers requests for embeddings, of any number of clients at once."""

    def __init__(
        self,
        registry: Registry,
        catalog: Catalog,
        queues: Queues,
        async_answers: AsyncAnswers,
        tokenizers: TokenizerCache,
        admission: Admission,
    ) -> None:
        """Ask the catalog's models through the process's queues."""
        self._admission = admission
        self._registry = registry
        self._catalog = catalog
        self._queues = queues
        self._async_answers = async_answers
        self._tokenizers = tokenizers

    def answer(self, body: EmbeddingBody, raw: bytes, environ: Mapping[str, Any]) -> HttpAnswer:
        """Answer one request, all of its vectors by the same version; raises FerryError.

        Next stop: `Queues.push_piece`.
        """
        api_key, options = environ.get(KEY), options_of(environ, {})
        if api_key is None:
            return self._answer(body, raw, options, environ, None)
        api_key.check("infer", body.name_and_version[0])
        with self._admission.place(api_key, self._queues.most_seconds(options)):
            return self._answer(body, raw, options, environ, api_key)

    def _answer(
        self,
        body: EmbeddingBody,
        raw: bytes,
        options: RequestOptions,
        environ: Mapping[str, Any],
        api_key: ApiKey | None,
    ) -> HttpAnswer:
        left_seconds = ASKING.get().left_of(self._queues.most_seconds(options))
        ends_at = time.monotonic() + left_seconds
        name, version = body.name_and_version
        key, path = environ.get(IDEMPOTENCY_KEY), environ["PATH_INFO"].encode()

        def attempt() -> bytes:
            spec = self._catalog.serving(name, checked_version(version))
            output = embedding_output(spec)
            check_dimensions(body.dimensions, output.dims[-1])
            if key is not None:
                self._async_answers.check_key(spec, key, path, raw, owner=api_key)
            named = version is not None
            blank = Question(spec, (), (output.name,), options, named=named)
            blank = blank if api_key is None else blank.of_key(api_key)
            return self._embed(body, blank, ends_at)

        return HttpAnswer(200, (), self._catalog.by_current(attempt))

    def _embed(self, body: EmbeddingBody, blank: Question, ends_at: float) -> bytes:
        """Return the answer; `blank` is every piece's question but for its inputs."""
        piece_rows = _piece_rows(len(body.texts), blank.spec)
        under_way = ceil(LEAST_BATCHES * blank.spec.batch_rows / piece_rows)
        if len(body.texts) > under_way * piece_rows:
            ready = self._registry.ready_instances(blank.spec.key)
            batches = max(LEAST_BATCHES, 2 * ready + 1)
            under_way = ceil(batches * blank.spec.batch_rows / piece_rows)
        embedding = _Embedding(body, blank, ends_at, self._queues, self._tokenizers)
        try:
            return embedding.run(piece_rows, under_way)
        except BadRequest as error:
            if error.param:
                raise
            raise BadRequest.about("input", error.message) from error


def embedding_output(spec: ModelSpec) -> TensorSpec:
    """Return the output that is a text's vector: the only one of FP32 with one vector for each row.

    Raises BadRequest for a model that takes no texts, or has no such output, or several.
    """
    if spec.input_kind != "text":
        raise BadRequest.about(
            "model", f"'{spec.name}' takes {spec.input_kind} input, only texts are embedded"
        )
    one_row = {1} if spec.batched else {1, -1}
    found = [
        output
        for output in spec.outputs
        if output.datatype == "FP32" and output.dims and one_row.issuperset(output.dims[:-1])
    ]
    if len(found) != 1:
        shown = [f"{each.name} {each.datatype} {list(each.dims)}" for each in spec.outputs]
        raise BadRequest.about(
            "model",
            f"'{spec.name}' has {len(found)} outputs of one FP32 vector for each text, expected "
            f"one: its outputs are {', '.join(shown)}",
        )
    return found[0]


class _Piece(NamedTuple):
    numbers: list[int]
    question: Question
    pending: PendingRequest


class _Embedding:
    """One request under way, on its client's thread.

    A piece is in `_under_way` from its push until its answer is written. `_done` has the pieces
    that are answered, in any order; the courier's thread fills it and wakes ours.
    """

    def __init__(
        self,
        body: EmbeddingBody,
        blank: Question,
        ends_at: float,
        queues: Queues,
        tokenizers: TokenizerCache,
    ) -> None:
        self._body = body
        self._blank = blank
        self._ends_at = ends_at
        self._queues = queues
        self._tokenizers = tokenizers
        self._written: dict[int, bytes] = {}
        self._token_count = 0
        self._under_way: dict[int, _Piece] = {}
        self._foremost: int | None = None  # the piece that is not bulk
        self._done: deque[int] = deque()
        self._woken = Event()

    def run(self, piece_rows: int, most_under_way: int) -> bytes:
        """Return the whole answer; what is under way when it fails is taken back."""
        try:
            for numbers in _cut(self._body.texts, piece_rows):
                while len(self._under_way) >= most_under_way:
                    self._settle()
                self._ask(numbers)
            while self._under_way:
                self._settle()
        finally:
            for piece in self._under_way.values():
                piece.pending.cancel()
        in_order = [self._written[number] for number in range(len(self._body.texts))]
        return embedding_list(in_order, self._body.model, self._token_count)

    def _ask(self, numbers: list[int]) -> None:
        texts = {number: self._body.texts[number] for number in numbers}
        encoded = self._tokenizers.encode_numbered(texts, self._blank.spec)
        self._token_count += encoded.token_count
        question = self._blank._replace(inputs=encoded.inputs, options=self._options())
        key, is_bulk = numbers[0], self._foremost is not None
        then = partial(self._note, key)
        pending = self._queues.push_piece(question, then, is_bulk=is_bulk)
        self._under_way[key] = _Piece(numbers, question, pending)
        if not is_bulk:
            self._foremost = key
        let_others()

    def _options(self) -> RequestOptions:
        """Return the options of a piece that has what is left of the request's time."""
        seconds = self._ends_at - time.monotonic()
        if seconds <= 0:
            raise RequestExpired("Request timeout expired")
        return self._blank.options.bounded(self._blank.spec, seconds)

    def _note(self, key: int) -> None:
        self._done.append(key)
        self._woken.set()

    def _settle(self) -> None:
        """Write the answers that are there, at least one; raises the error in a piece's place."""
        self._woken.wait()
        self._woken.clear()  # first: what is noted from here on wakes us again
        while self._done:
            key = self._done.popleft()
            piece = self._under_way.pop(key)
            if key == self._foremost:
                self._foremost = None
            result = self._queues.wait(self._blank.spec, piece.pending)
            self._queues.copy_to_shadow(piece.question, result)
            self._write(piece.numbers, result)

    def _write(self, numbers: list[int], result: InferResult) -> None:
        array = result.outputs[0].array()
        vectors = array.reshape(-1, array.shape[-1])
        if len(vectors) != len(numbers):
            raise BadRequest.about(
                "model",
                f"'{self._blank.spec.name}' gives {len(vectors)} vectors for {len(numbers)} texts",
            )
        vectors = cut_vectors(vectors, self._body.dimensions, numbers)
        written = written_vectors(vectors, numbers, self._body.encoding_format)
        self._written.update(zip(numbers, written, strict=True))


def _piece_rows(count: int, spec: ModelSpec) -> int:
    """Return how many texts a piece has: all of them, where one batch holds them."""
    if count <= min(spec.batch_rows, MAX_PIECE_ROWS):
        return count
    return min(max(1, spec.batch_rows // PIECES_OF_BATCH), MAX_PIECE_ROWS)


def _cut(texts: list[Text], rows: int) -> Iterator[list[int]]:
    """Yield the numbers of the texts of each piece: texts of about a length are padded least."""
    if len(texts) <= rows:
        yield list(range(len(texts)))
        return
    numbers = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
    for start in range(0, len(numbers), rows):
        yield numbers[start : start + rows]
