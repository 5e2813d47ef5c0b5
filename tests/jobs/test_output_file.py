"""The lines of a bulk job on disk: whole ones stay, a cut one is written again, one writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.bulk.output_file import OutputFile
from shared.errors import BadRequest

ASKED = {"model": "m/1"}
GOOD = {"source": "row", "prediction": {"error": "a label"}}
BAD = {"source": ',"prediction":', "error": "wrong"}


def test_a_cut_line_is_written_again_and_errors_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "out.ndjson"
    output = OutputFile(path, ASKED)
    output.write([{"index": 0, **GOOD}, {"index": 1, **BAD}])
    output.close()
    with (tmp_path / "out.ndjson.partial").open("ab") as stream:
        stream.write(b'{"index":2,"sou')

    output = OutputFile(path, ASKED)
    assert (output.lines, output.errors) == (2, 1)
    output.write([{"index": 2, **GOOD}])
    output.finish()

    lines = path.read_text().splitlines()
    assert [line[:10] for line in lines] == [f'{{"index":{number}' for number in range(3)]
    assert [file.name for file in tmp_path.iterdir()] == ["out.ndjson"]


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    output = OutputFile(tmp_path / "out.ndjson", ASKED)
    with pytest.raises(BadRequest, match=r"out\.ndjson: another process writes it"):
        OutputFile(tmp_path / "out.ndjson", ASKED, restart=True)
    output.close()

    OutputFile(tmp_path / "out.ndjson", ASKED).close()


def test_what_was_asked_is_compared_even_if_it_was_cut(tmp_path: Path) -> None:
    OutputFile(tmp_path / "out.ndjson", ASKED).close()
    (tmp_path / "out.ndjson.progress").write_text('{"mod')

    with pytest.raises(BadRequest, match="another model"):
        OutputFile(tmp_path / "out.ndjson", ASKED)
    OutputFile(tmp_path / "out.ndjson", ASKED, restart=True).close()


def test_a_name_that_is_no_utf8_is_shown_by_its_bytes(tmp_path: Path) -> None:
    output = OutputFile(tmp_path / "out.ndjson", {})
    output.write([{"index": 0, "source": "x\udcff.png", "error": "no \udcff"}])
    output.finish()

    line = json.loads((tmp_path / "out.ndjson").read_bytes())
    assert line == {"index": 0, "source": "x\\udcff.png", "error": "no \\udcff"}
