"""How texts are padded and cut is read from the tokenizer's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stand_ins import text_model, tokenizer

from shared.errors import BadModel
from worker.repository.models import read_model
from worker.repository.tokens import TokenRules, token_rules

NOTHING: dict[str, Any] = {"padding": None, "truncation": None, "model": {"vocab": {"a": 5}}}
PADDING = {
    "strategy": "BatchLongest",
    "direction": "Left",
    "pad_to_multiple_of": 8,
    "pad_id": 3,
    "pad_type_id": 2,
    "pad_token": "<pad>",
}
CUTTING = {"max_length": 128, "strategy": "LongestFirst", "stride": 0, "direction": "Left"}
ADDED = [{"id": 9, "content": "<pad>", "special": True}]


def rules(directory: Path, own: dict[str, Any] | None = None, **beside: Any) -> TokenRules:
    """Read a tokenizer with these members, and files beside it by their names."""
    for name, content in beside.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / f"{name}.json").write_text(text)
    return token_rules(json.dumps(NOTHING | (own or {})), directory)


def test_a_tokenizer_says_all_of_it_by_itself(tmp_path: Path) -> None:
    others = {"pad_token": "a", "pad_token_id": 7, "padding_side": "right", "model_max_length": 9}

    found = rules(tmp_path, {"padding": PADDING, "truncation": CUTTING}, tokenizer_config=others)

    assert found == TokenRules(
        pad_id=3, pad_type_id=2, pad_left=True, pad_multiple=8, cut_left=True, max_length=128
    )


def test_where_it_says_nothing_the_usual_is_taken(tmp_path: Path) -> None:
    assert rules(tmp_path) == TokenRules()


@pytest.mark.parametrize(
    ("own", "beside", "pad_id"),
    [
        ({}, {"tokenizer_config": {"pad_token": "a"}}, 5),
        ({}, {"tokenizer_config": {"pad_token": {"content": "a"}}}, 5),
        ({}, {"special_tokens_map": {"pad_token": {"content": "a"}}}, 5),
        ({"added_tokens": ADDED}, {"tokenizer_config": {"pad_token": "<pad>"}}, 9),
        (
            {},
            {"tokenizer_config": {"pad_token": None}, "special_tokens_map": {"pad_token": "a"}},
            5,
        ),
        ({}, {"config": {"pad_token_id": 2}}, 2),
        ({}, {"config": {"pad_token_id": 0}}, 0),
        ({}, {"tokenizer_config": {"pad_token": "unheard of"}, "config": {"pad_token_id": 4}}, 4),
        ({"added_tokens": ADDED}, {}, 9),
        ({"added_tokens": ADDED}, {"config": {"pad_token_id": None}}, 9),
        ({"model": {"vocab": {"x": 0, "[PAD]": 6}}}, {}, 6),
        ({"model": {"type": "Unigram", "vocab": [["<s>", 0.0], ["<pad>", 0.0]]}}, {}, 1),
        ({}, {"config": {"pad_token_id": -1}}, 0),
        ({}, {"config": {"pad_token_id": True}}, 0),
        ({}, {"config": "no JSON at all", "special_tokens_map": [1, 2]}, 0),
    ],
)
def test_the_token_that_pads_is_named_given_or_known(
    tmp_path: Path, own: dict[str, Any], beside: dict[str, Any], pad_id: int
) -> None:
    assert rules(tmp_path, own, **beside).pad_id == pad_id


def test_the_sides_may_stand_beside_it(tmp_path: Path) -> None:
    config = {"padding_side": "left", "truncation_side": "left", "pad_token_type_id": 3}

    found = rules(tmp_path, tokenizer_config=config)

    assert found == TokenRules(pad_type_id=3, pad_left=True, cut_left=True)


@pytest.mark.parametrize(("length", "limit"), [(256, 256), (10**30, None), (0, None), (1e3, None)])
def test_the_longest_text_may_stand_beside_it(
    tmp_path: Path, length: float, limit: int | None
) -> None:
    assert rules(tmp_path, tokenizer_config={"model_max_length": length}).max_length == limit


@pytest.mark.parametrize("name", ["tokenizer.json", "words.json"])
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "the tokenizer is no JSON: "),
        ("{", "the tokenizer is no JSON: "),
        ("<html>", "the tokenizer is no JSON: "),
        ("[" * 100_000, "the tokenizer is no JSON: too many levels of brackets"),
        ("[]", "the tokenizer is no JSON object"),
        ('{"added_tokens": {"a": 1}}', "added_tokens is {'a': 1}, expected a list"),
        ('{"added_tokens": [{"content": "a"}]}', r"added_tokens[0] is {'content': 'a'}, expected"),
        ('{"added_tokens": [{"id": 1, "content": 2}]}', "added_tokens[0] is "),
        ('{"added_tokens": ["a"]}', "added_tokens[0] is 'a', expected an object with content"),
        ('{"added_tokens": [{"id": [], "content": "a"}]}', "token 'a' has the id [], no number"),
        ('{"model": {"vocab": [1]}}', "model.vocab[0] is 1, expected a list of token and score"),
        ('{"model": {"vocab": [["a", 0], []]}}', "model.vocab[1] is [], expected"),
        ('{"model": {"vocab": [[[], 0]]}}', "model.vocab[0] is [[], 0], expected"),
        ('{"model": {"vocab": {"[PAD]": "x"}}}', "token '[PAD]' has the id 'x', no number"),
        ('{"padding": {"pad_id": 2147483648}}', "pad_id 2147483648 (or what the files beside it"),
    ],
)
def test_a_tokenizer_that_is_none_is_refused_by_its_name(
    tmp_path: Path, name: str, text: str, fault: str
) -> None:
    text_model(tmp_path, "m", max_length=8, truncate=True, datatype="INT32")
    config = tmp_path / "m" / "config.pbtxt"
    parameter = f'parameters {{ key: "tokenizer" value {{ string_value: "{name}" }} }}'
    config.write_text(config.read_text() + parameter)
    (tmp_path / "m" / name).write_text(text)

    with pytest.raises(BadModel) as refused:
        read_model(tmp_path, "m")

    assert str(refused.value).startswith(f"{tmp_path}/m/{name}: {fault}")


def test_a_tokenizer_beside_a_model_that_takes_ids_is_refused_alike(tmp_path: Path) -> None:
    text_model(tmp_path, "m", max_length=8, truncate=True)
    config = tmp_path / "m" / "config.pbtxt"
    config.write_text(config.read_text().replace('"text"', '"tensor"'))
    (tmp_path / "m" / "tokenizer.json").write_text('{"added_tokens": {"a": 1}}')

    with pytest.raises(BadModel) as refused:
        read_model(tmp_path, "m")

    assert str(refused.value).startswith(f"{tmp_path}/m/tokenizer.json: added_tokens is ")


@pytest.mark.parametrize(
    ("datatype", "largest"),
    [("INT32", 2**31 - 1), ("UINT32", 2**32 - 1), ("INT64", 2**63 - 1), ("FP32", 2**24)],
)
def test_the_largest_id_that_pads_is_what_the_input_holds(
    tmp_path: Path, datatype: str, largest: int
) -> None:
    text_model(tmp_path, "m", max_length=8, truncate=True, datatype=datatype)
    config, own = tmp_path / "m" / "config.json", tmp_path / "m" / "tokenizer.json"
    own.write_text('{"model": {}}')

    config.write_text(json.dumps({"pad_token_id": largest}))
    assert read_model(tmp_path, "m").spec.inputs_by_name["input_ids"].pad == largest
    config.write_text(json.dumps({"pad_token_id": largest + 1}))
    with pytest.raises(BadModel, match=rf"pad_id {largest + 1} .* TYPE_{datatype}"):
        read_model(tmp_path, "m")


def test_a_file_beside_it_of_too_many_brackets_is_left_out(tmp_path: Path) -> None:
    assert rules(tmp_path, tokenizer_config="[" * 100_000) == TokenRules()


def test_a_model_pads_its_ids_and_types_and_masks_the_rest(tmp_path: Path) -> None:
    text_model(tmp_path, "m", max_length=8, truncate=True)
    words = tokenizer()
    words.enable_padding(pad_id=4, direction="left", pad_to_multiple_of=4)
    words.save(str(tmp_path / "m" / "tokenizer.json"))

    spec = read_model(tmp_path, "m").spec

    assert [(each.name, each.pad, each.pad_left) for each in spec.inputs] == [
        ("input_ids", 4, True),
        ("attention_mask", 0, True),
    ]
    assert spec.inputs_by_name["input_ids"].pad == 4
    assert spec.text is not None and spec.text.pad_multiple == 4


def test_ids_that_clients_make_are_padded_by_the_same_files(tmp_path: Path) -> None:
    text_model(tmp_path, "m", max_length=8, truncate=True)
    file = tmp_path / "m" / "config.pbtxt"
    file.write_text(file.read_text().replace('"text"', '"tensor"'))
    (tmp_path / "m" / "config.json").write_text('{"pad_token_id": 2}')
    words = json.loads(tokenizer().to_str())
    del words["model"]["vocab"]["[PAD]"]
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(words))

    spec = read_model(tmp_path, "m").spec

    assert spec.text is None
    assert [each.pad for each in spec.inputs] == [2, 0]


def test_without_a_length_in_the_config_the_tokenizers_counts(tmp_path: Path) -> None:
    text_model(tmp_path, "m", max_length=8, truncate=True)
    file = tmp_path / "m" / "config.pbtxt"
    lines = [line for line in file.read_text().splitlines() if "max_length" not in line]
    file.write_text("\n".join(lines))
    lengths = []
    for limit in (None, 77):
        if limit:
            (tmp_path / "m" / "tokenizer_config.json").write_text(
                f'{{"model_max_length": {limit}}}'
            )
        text = read_model(tmp_path, "m").spec.text
        assert text is not None
        lengths.append(text.max_length)

    assert lengths == [512, 77]
