"""The types of bodies as JSON schemas, for /openapi.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

JSON, BYTES, PICTURE = "application/json", "application/octet-stream", "image/*"
FORM = "multipart/form-data"
Content = Mapping[str, tuple[Any, ...]]
"""The types that a body may have, by media type; no types stand for bytes."""
ANY_BYTES = {"type": "string", "format": "binary"}


class Bodies(NamedTuple):
    """`references` to the schema of each type, and the `components` that they refer to."""

    references: Mapping[str, dict[str, Any]]
    components: Mapping[str, dict[str, Any]]

    @classmethod
    def of(cls, contents: Iterable[Content]) -> Bodies:
        """Return the schemas of all types that these bodies may be."""
        adapters: dict[str, TypeAdapter[Any]] = {
            repr(item): TypeAdapter(item)
            for content in contents
            for types in content.values()
            for item in types
        }
        references, whole = TypeAdapter.json_schemas(
            [(name, "serialization", adapter) for name, adapter in sorted(adapters.items())],
            ref_template="#/components/schemas/{model}",
            schema_generator=_WithoutFieldTitles,
        )
        named = {name: schema for (name, _), schema in references.items()}
        return cls(named, whole.get("$defs", {}))

    def content(self, content: Content) -> dict[str, Any]:
        """Return OpenAPI's media types of a body."""
        return {media: {"schema": self._any_of(types)} for media, types in content.items()}

    def _any_of(self, types: tuple[Any, ...]) -> dict[str, Any]:
        schemas = [dict(self.references[repr(item)]) for item in types]
        if len(schemas) > 1:
            return {"anyOf": schemas}
        return schemas[0] if schemas else dict(ANY_BYTES)


class _WithoutFieldTitles(GenerateJsonSchema):
    """Leaves out the titles of fields, which would be their names once more."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False
