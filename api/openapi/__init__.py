"""/openapi.json and /docs/: what every route takes and answers."""
