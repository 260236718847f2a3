"""What every class of the API has in common: camelCase on the wire, frozen, no unknown fields."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

GROUP = "finetune-operator.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


class ApiModel(BaseModel):
    """Base class: field names are snake_case in Python and camelCase in JSON."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    def to_json_dict(self) -> dict[str, Any]:
        """The object as JSON types, unset (None) fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def parse(cls, data: Any) -> Self:
        """Validate untyped JSON; raises `pydantic.ValidationError` that lists every problem."""
        return cls.model_validate(data)


def rule(cel: str, message: str, field_path: str | None = None) -> dict[str, str]:
    """One CEL rule of the CRD: `message` names the field and the fix."""
    found = {"rule": cel, "message": message}
    if field_path is not None:
        found["fieldPath"] = field_path
    return found


def rules(*found: dict[str, str]) -> dict[str, Any]:
    """The rules of one object, for `json_schema_extra`."""
    return {"x-kubernetes-validations": list(found)}
