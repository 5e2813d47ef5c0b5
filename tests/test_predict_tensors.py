"""Plain numbers through `/predict` and v2, answered by the real worker."""

from __future__ import annotations

import numpy as np
from flask.testing import FlaskClient


def test_rows_sent_together_equal_rows_sent_alone(client: FlaskClient) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 16)).round(3).tolist()

    together = client.post("/predict/tiny", json={"input_tensor": rows}).json["prediction"]
    alone = [
        client.post("/predict/tiny", json={"input_tensor": [row]}).json["prediction"][0]
        for row in rows
    ]

    np.testing.assert_allclose(together, alone, atol=1e-5)
