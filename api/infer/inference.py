"""Answers a client's request (stop 2 of the walk): now, later, or once for each key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.access.guard import KEY
from api.infer.answer import HttpAnswer
from api.infer.async_answers import AsyncAnswers
from api.infer.options import options_of
from api.infer.question import Question, shown_to
from api.infer.queues import Queues
from api.infer.render import render
from api.payloads.binary_tensors import header_length
from api.readers.readers import Readers
from shared.access.admission import Admission
from shared.errors import UnknownModel, shown
from shared.messages import AnswerForm, Buffer
from shared.registry.catalog import Catalog

PREFER, IDEMPOTENCY_KEY = "HTTP_PREFER", "HTTP_IDEMPOTENCY_KEY"
"""The headers that make a request asynchronous or idempotent, as WSGI names them."""


class Inference:
    """Checks requests, asks the models and writes the answers; for HTTP, with or without Flask."""

    def __init__(
        self,
        catalog: Catalog,
        queues: Queues,
        async_answers: AsyncAnswers,
        readers: Readers,
        admission: Admission,
    ) -> None:
        """Serve the catalog's models through the queues; `readers` read the bodies."""
        self._admission = admission
        self._catalog = catalog
        self._queues = queues
        self._async_answers = async_answers
        self._readers = readers

    def infer(
        self, name: str, version: str | None, raw: Buffer, environ: Mapping[str, Any]
    ) -> HttpAnswer:
        """Answer one v2 request; whatever does not fit the model is never queued.

        `raw` is its body, `environ` WSGI's. Raises FerryError. Next stop: `Queues.ask`.
        """
        return self._catalog.by_current(lambda: self._infer(name, version, raw, environ))

    def _infer(
        self, name: str, version: str | None, raw: Buffer, environ: Mapping[str, Any]
    ) -> HttpAnswer:
        spec = self._catalog.serving(name, checked_version(version))
        body = self._readers.infer(raw, spec, header_length(environ, len(raw)))
        options = options_of(environ, body.parameters)
        form = AnswerForm("infer", body.id, outputs=body.outputs, binary=body.binary)
        named = version is not None
        key = environ.get(KEY)
        question = Question(spec, body.inputs, body.output_names, options, form, named, (), key)
        return self.respond(question, environ)

    def respond(self, question: Question, environ: Mapping[str, Any]) -> HttpAnswer:
        """Answer a checked request as its headers want it; raises FerryError.

        `Prefer: respond-async` is answered with 202 at once, an `Idempotency-Key` as it was before.
        """
        api_key = environ.get(KEY)
        if api_key is None:
            return self._respond(question, environ)
        api_key.check("infer", question.spec.name)
        question = question.of_key(api_key)
        if not api_key.is_limited:  # fast: as most are
            self._admission.count(api_key, "admitted")
            return self._respond(question, environ)
        with self._admission.place(api_key, self._queues.timeout_seconds(question)):
            return self._respond(question, environ)

    def _respond(self, question: Question, environ: Mapping[str, Any]) -> HttpAnswer:
        key = environ.get(IDEMPOTENCY_KEY)
        # fast: nearly all requests have neither header.
        prefer = environ.get(PREFER)
        wants_async = prefer is not None and "respond-async" in _preferences(prefer)
        if key is not None:
            path = environ["PATH_INFO"]
            return self._async_answers.once(key, path, question, wait=not wants_async)
        if wants_async:
            return self._async_answers.accept(question)
        answered = self._queues.ask(question)
        return render(answered.spec, shown_to(question.owner, answered.result), question.form)


def checked_version(version: str | None) -> str | None:
    """Return a version as it is named in a URL; anything but digits is unknown.

    Raises UnknownModel.
    """
    if version is not None and not (version.isascii() and version.isdigit()):
        raise UnknownModel(f"version {shown(version)} is not found: a version is a number")
    return version


def _preferences(header: str) -> set[str]:
    """Return the preferences of a header as RFC 7240 has it, without their parameters."""
    return {item.partition(";")[0].strip().lower() for item in header.split(",")}
