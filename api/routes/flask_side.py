"""Flask's side of the routes: the process's services, responses, and JSON by orjson."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from flask import Response, current_app
from flask.json.provider import JSONProvider

from api.access.fair_line import FairLine
from api.infer.answer import OPTIONS, Headers, HttpAnswer, json_answer
from api.infer.async_answers import AsyncAnswers
from api.infer.embeddings import Embeddings
from api.infer.inference import Inference
from api.readers.readers import Readers
from api.services import Services
from shared.inputs.loop import LOOP_THREADS
from shared.inputs.texts import TokenizerCache
from shared.settings import Settings

EXTENSION = "ferry"
"""The services' place in Flask's `extensions`."""


@dataclass(frozen=True)
class HttpServices(Services):
    """One process's services for HTTP: those of gRPC, and its own."""

    async_answers: AsyncAnswers
    inference: Inference
    readers: Readers
    tokenizers: TokenizerCache
    embeddings: Embeddings

    @classmethod
    def of(cls, settings: Settings, *loggers: str, service: str = "ferry-api") -> HttpServices:
        """Make them all."""
        base = Services.of(settings, *loggers, service=service)
        async_answers = AsyncAnswers(base.client, settings, base.queues)
        readers = Readers(settings)
        inference = Inference(
            base.catalog, base.queues, async_answers, readers, base.guard.admission
        )
        line = FairLine(LOOP_THREADS, settings.max_waiting, settings.request_timeout_seconds)
        tokenizers = TokenizerCache(base.registry, line)
        embeddings = Embeddings(
            base.registry,
            base.catalog,
            base.queues,
            async_answers,
            tokenizers,
            base.guard.admission,
        )
        return cls(
            **vars(base),
            async_answers=async_answers,
            inference=inference,
            readers=readers,
            tokenizers=tokenizers,
            embeddings=embeddings,
        )


def services() -> HttpServices:
    """Return the services of the application that answers now."""
    found: HttpServices = current_app.extensions[EXTENSION]
    return found


def response_of(answer: HttpAnswer) -> Response:
    """Return an answer as Flask's response."""
    return Response(answer.body, answer.status, answer.headers, content_type=answer.content_type)


def json_response(body: Any, status: int = 200, headers: Headers = ()) -> Response:
    """Return `body` as JSON, see `json_answer`."""
    return response_of(json_answer(body, status, headers))


class OrjsonProvider(JSONProvider):
    """The JSON of Flask itself."""

    def dumps(self, obj: Any, **_: Any) -> str:
        """Encode."""
        return orjson.dumps(obj, option=OPTIONS).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        """Decode; raises ValueError."""
        return orjson.loads(s)
