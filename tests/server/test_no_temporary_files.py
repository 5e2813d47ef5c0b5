"""No request needs a directory for temporary files: a container's may be read-only, or full."""

from __future__ import annotations

import gzip
import tempfile
from random import Random

import pytest
from answers import refusal
from registered import register, spec

from api.app import create_app
from shared.model_spec import TensorSpec
from shared.settings import Settings

FORM = (
    b'--edge\r\nContent-Disposition: form-data; name="file"; filename="big.png"\r\n\r\n'
    + Random(1).randbytes(2**21)
    + b"\r\n--edge--\r\n"
)


@pytest.mark.parametrize("packed", [False, True])
def test_a_large_upload_is_read_without_a_temporary_file(
    settings: Settings, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(settings, spec("numbers", TensorSpec(name="x", datatype="FP32", dims=(4,))))
    client = create_app(settings).test_client()
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")

    answered = client.post(
        "/predict/numbers",
        data=gzip.compress(FORM, 1) if packed else FORM,
        content_type="multipart/form-data; boundary=edge",
        headers={"Content-Encoding": "gzip"} if packed else {},
    )

    assert "numbers" in refusal(answered, 400, "bad_request")
