"""Token ids become exactly the tensors that a text model declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from loaded import spec, tensor
from stand_ins import tokenizer

from shared.inputs import texts
from shared.inputs.texts import TokenizerCache
from shared.model_spec import ModelSpec, TextInput


class Assets:
    """Holds the stand-in's tokenizer under every digest."""

    def asset(self, digest: str) -> bytes:
        return tokenizer().to_str().encode()


class Line:
    """Counts who has a place."""

    held = 0

    @contextmanager
    def place(self, model: str) -> Iterator[None]:
        assert model
        self.held += 1
        yield
        self.held -= 1


def described(
    *dims: int, datatype: str = "INT64", max_length: int = 512, rows: int = 8
) -> ModelSpec:
    names = ("input_ids", "attention_mask")
    return spec([tensor(name, datatype, *dims) for name in names], [tensor("y")], rows).model_copy(
        update={"text": TextInput(tokenizer="digest", max_length=max_length)}
    )


def encoded(texts: list[str], model: ModelSpec, cache: Any = None) -> tuple[Any, list[bool]]:
    """Return the ids as lists, and which texts were cut."""
    (ids, mask), cut = (cache or TokenizerCache(Assets())).encode(texts, model)  # type: ignore[arg-type]
    assert (ids.datatype, ids.shape) == (mask.datatype, mask.shape)
    assert ids.datatype == model.inputs[0].datatype
    return ids.array().tolist(), cut


@pytest.mark.parametrize("datatype", ["INT64", "INT32", "UINT32", "FP32"])
def test_ids_are_of_the_declared_datatype(datatype: str) -> None:
    found, _ = encoded(["good"], described(-1, datatype=datatype))

    assert len(found[0]) == 3


def test_texts_are_padded_to_a_fixed_length_and_cut_at_it() -> None:
    found, cut = encoded(["good", "good " * 9], described(5, max_length=5))

    assert [len(row) for row in found] == [5, 5]
    assert found[0][3:] == [0, 0] and 0 not in found[1]
    assert cut == [False, True]


def test_a_length_that_special_tokens_alone_pass_cuts_them() -> None:
    found, cut = encoded(["good"], described(1, max_length=1))

    assert ([len(row) for row in found], cut) == ([1], [True])


@pytest.mark.parametrize(
    ("dims", "nested"), [((-1,), False), ((4,), False), ((1, -1), True), ((-1, 4), True)]
)
def test_without_a_batch_dimension_the_ids_are_as_the_dims_say(
    dims: tuple[int, ...], nested: bool
) -> None:
    found, _ = encoded(["good"], described(*dims, rows=0, max_length=4))

    assert isinstance(found[0], list) is nested


def test_models_that_share_a_tokenizer_have_their_own_lengths() -> None:
    cache = TokenizerCache(Assets())  # type: ignore[arg-type]

    long, _ = encoded(["good " * 9], described(-1, max_length=8), cache)
    short, _ = encoded(["good " * 9], described(-1, max_length=4), cache)

    assert (len(long[0]), len(short[0])) == (8, 4)


@pytest.mark.parametrize(
    ("left", "found"),
    [
        (False, [[2, 4, 5, 6, 3], [2, 4, 3, 9, 9]]),
        (True, [[2, 7, 8, 9, 3], [9, 9, 2, 4, 3]]),
    ],
)
def test_texts_are_cut_and_padded_on_the_side_that_the_tokenizer_names(
    left: bool, found: list[list[int]]
) -> None:
    model = described(5, max_length=5)
    assert model.text is not None
    ids, mask = (each.model_copy(update={"pad_left": left}) for each in model.inputs)
    padded = model.with_changes(
        inputs=(ids.model_copy(update={"pad": 9}), mask),
        text=model.text.model_copy(update={"cut_left": left}),
    )

    assert encoded(["good bad film food the was", "good"], padded) == (found, [True, False])


def test_a_text_far_beyond_the_length_keeps_the_side_that_the_tokenizer_names() -> None:
    model = described(-1, max_length=4)
    assert model.text is not None
    cut = model.with_changes(text=model.text.model_copy(update={"cut_left": True}))

    assert encoded(["good " * 9999 + "bad film"], cut) == ([[2, 5, 6, 3]], [True])


@pytest.mark.parametrize(("multiple", "length"), [(1, 5), (4, 8), (8, 8), (16, 9), (10**9, 9)])
def test_a_multiple_is_padded_to_but_not_past_the_longest_text(multiple: int, length: int) -> None:
    text = TextInput(tokenizer="digest", max_length=9, pad_multiple=multiple)
    model = described(-1).model_copy(update={"text": text})

    [ids], _ = encoded(["good bad film"], model)

    assert len(ids) == length


@pytest.mark.parametrize(("repeats", "is_beside"), [(1, False), (60, False), (1000, True)])
def test_many_characters_wait_in_line_for_a_thread_beside_an_event_loop(
    monkeypatch: pytest.MonkeyPatch, repeats: int, *, is_beside: bool
) -> None:
    given = ["good " * repeats, "bad film " * repeats]
    wanted = encoded(given, described(-1))
    beside: list[int] = []

    def beside_loop(work: Callable[..., Any], *arguments: Any) -> Any:
        assert line.held == 1
        beside.append(len(arguments[1]))
        return work(*arguments)

    monkeypatch.setattr(texts, "in_event_loop", lambda: True)
    monkeypatch.setattr(texts, "beside_loop", beside_loop)
    line = Line()
    cache = TokenizerCache(Assets(), line)  # type: ignore[arg-type]

    assert encoded(given, described(-1), cache) == wanted
    assert beside == ([2] if is_beside else [])
    assert line.held == 0
