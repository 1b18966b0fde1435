"""From a JSON Schema object to a tool's parameters, for JSON Schema files, OpenAI tools and Python modules.

What a catalog cannot express exactly becomes text, with a remark [INFERRED]:

- An object with properties is flattened by one level (``address.street``). Deeper objects and objects without
  listed properties are text (``object_as_text``).
- Of the parameters' own object, and of a flattened one, what only an alternative or a condition lists is
  optional (``branches_joined``), and what it takes without listing it is left out (``unlisted_left_out``).
- An array is text (``array_as_text``); the enum of its items stays as a hint.
- Alternatives of one type are that type, integer or number is number, others are text (``union_as_text``).
- A schema without a type is text (``untyped_as_text``), and so is a date-time (``datetime_as_text``).

A parameter is required when the schema lists it as required and it neither accepts null nor has a default:
strict tools list every parameter as required and make the optional ones nullable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from proactor.catalogs.base import CatalogError, Place, Remark, one_line
from proactor.catalogs.keywords import ALTERNATIVES, Schema, is_nullable, kinds_of, merged, takes_unlisted
from proactor.dialogue.catalog import Parameter, ParameterType
from proactor.files import first_problem

DEEPEST = 8
"""Nesting limit of alternatives; a schema with more refers to itself."""

MOST_SCHEMAS = 10_000
"""Schemas looked at for one tool; two ``$ref`` in each of many levels would double them at every level."""

_PLAIN: dict[str, ParameterType] = {
    "string": "string",
    "integer": "integer",
    "number": "number",
    "boolean": "boolean",
}
_KNOWN = (*_PLAIN, "array", "object", "null")


@dataclass(frozen=True, slots=True)
class Spot:
    """A schema inside a file: ``#/…`` references start from ``root``, and ``place`` is where it stands."""

    schema: Any
    root: Schema
    place: Place = ()
    root_place: Place = ()
    depth: int = 0
    """alternatives inside alternatives"""

    def at(self, *steps: str | int) -> Spot:
        """The part of the schema at ``steps``."""
        inner = self.schema
        for step in steps:
            inner = inner[step]
        return replace(self, schema=inner, place=(*self.place, *steps))


@dataclass(frozen=True, slots=True)
class _Shape:
    """The values that a schema accepts, as far as a catalog can express it."""

    type: ParameterType
    values: tuple[str, ...] = ()
    nullable: bool = False
    kind: str = ""
    """of remark; empty when the type is exact"""


@dataclass(slots=True)
class SchemaReader:
    """Reads the parameters of one tool. `where(place)` names a place in the file; adds to ``remarks``."""

    tool: str
    where: Callable[[Place], str]
    remarks: list[Remark] = field(default_factory=list)
    looked_at: int = 0

    def parameters(self, spot: Spot) -> tuple[Parameter, ...]:
        """The parameters of an object schema. Raises CatalogError, naming file, line, tool and parameter."""
        spot = self._resolve(spot, "")
        if kinds_of(spot.schema) not in ([], ["object"]):
            raise self._error(
                spot, "", f"a schema of type {spot.schema['type']!r} is not the object of a tool's parameters"
            )
        return tuple(
            p
            for name, required, inner in self._properties(spot, "")
            for p in self.parameter(name, inner, required)
        )

    def parameter(self, name: str, spot: Spot, required: bool) -> tuple[Parameter, ...]:
        """One property as a parameter, or as several where it is an object."""
        spot = self._resolve(spot, name)
        alternative = spot if spot.schema.get("properties") else self._only_alternative(spot, name)
        is_object = kinds_of(alternative.schema) == ["object"] and alternative.schema.get("properties")
        if is_object and "." not in name:
            nullable = alternative is not spot or is_nullable(spot.schema)
            required = required and not nullable and "default" not in spot.schema
            self.remarks.append(Remark(self.tool, name, "flattened"))
            return tuple(
                p
                for inner, inner_required, there in self._properties(alternative, f"{name}.")
                for p in self.parameter(f"{name}.{inner}", there, required and inner_required)
            )
        shape = self._shape(spot, name)
        if shape.kind:
            self.remarks.append(Remark(self.tool, name, shape.kind))
        required = required and not shape.nullable and "default" not in spot.schema
        description = one_line(spot.schema.get("description") or alternative.schema.get("description"))
        try:
            parameter = Parameter(
                name=name, type=shape.type, required=required, description=description, values=shape.values
            )
        except ValidationError as error:
            raise self._error(spot, name, first_problem(error)) from None
        return (parameter,)

    def _properties(self, spot: Spot, prefix: str) -> list[tuple[str, bool, Spot]]:
        """Name, whether required, and schema of an object's properties; those of branches are optional."""
        name = prefix[:-1]
        schema, branches = self._checked(spot, name), self._branches(spot, name)
        own, required = schema.get("properties", {}), schema.get("required", ())
        found = {key: [spot.at("properties", key)] for key in own}
        for branch in branches:
            for key in self._checked(branch, name).get("properties", ()):
                if key not in own:
                    found.setdefault(key, []).append(branch.at("properties", key))
        for key in required:
            if not isinstance(key, str) or key not in found:
                raise self._error(spot, name, f"`required` names {key!r}, which is not among the properties")
        kinds = {"branches_joined": bool(branches), "unlisted_left_out": takes_unlisted(schema)}
        self.remarks += [Remark(self.tool, name, kind) for kind, fits in kinds.items() if fits]
        return [(key, key in required, _either(spots)) for key, spots in found.items()]

    def _branches(self, spot: Spot, name: str) -> list[Spot]:
        """The schemas in an object's that hold at times, and those in them."""
        single = [(key,) for key in ("then", "else") if isinstance(spot.schema.get(key), Mapping)]
        by_name = spot.schema.get("dependentSchemas")
        named = [("dependentSchemas", key) for key in by_name] if isinstance(by_name, Mapping) else []
        found = [self._inside(spot, name, *steps) for steps in (*single, *named)]
        for key in (*ALTERNATIVES, "allOf"):  # what is left of allOf
            found += self._alternatives(spot, name, key) if key in spot.schema else []
        return [one for branch in found for one in (branch, *self._branches(branch, name))]

    def _resolve(self, spot: Spot, name: str, seen: tuple[str, ...] = ()) -> Spot:
        """The schema with ``$ref`` followed and ``allOf`` merged; ``true`` accepts anything."""
        self.looked_at += 1
        if self.looked_at > MOST_SCHEMAS:
            raise self._error(spot, name, f"more than {MOST_SCHEMAS} schemas, $refs followed")
        schema = {} if spot.schema is True else spot.schema
        if not isinstance(schema, Mapping):
            raise self._error(spot, name, f"{schema!r} is not a schema")
        if "$ref" in schema:
            reference = schema["$ref"]
            if reference in seen:
                raise self._error(spot, name, f"$ref {reference!r} leads back to itself")
            target = self._resolve(self._follow(spot, name, reference), name, (*seen, reference))
            beside = {
                key: value for key, value in schema.items() if key not in ("$ref", "$defs", "definitions")
            }
            return replace(target, schema=merged(beside, target.schema))
        if isinstance(parts := schema.get("allOf"), Sequence) and not isinstance(parts, str):
            whole = self._checked(replace(spot, schema={**schema}), name)
            del whole["allOf"]
            for position in range(len(parts)):
                part = self._checked(self._resolve(spot.at("allOf", position), name, seen), name)
                whole = merged(whole, part)
            schema = whole
        return replace(spot, schema=schema)

    def _checked(self, spot: Spot, name: str) -> dict[str, Any]:
        """A schema that can be merged with others."""
        for key, kind, what in (("properties", Mapping, "an object"), ("required", list, "a list of names")):
            if key in spot.schema and not isinstance(spot.schema[key], kind):
                raise self._error(spot, name, f"`{key}` is not {what}")
        return dict(spot.schema)

    def _follow(self, spot: Spot, name: str, reference: object) -> Spot:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise self._error(spot, name, f"$ref {reference!r} leaves the file; only #/… is read")
        steps = [s.replace("~1", "/").replace("~0", "~") for s in reference[1:].split("/") if s]
        inner: Any = spot.root
        for step in steps:
            if not isinstance(inner, Mapping) or step not in inner:
                raise self._error(spot, name, f"$ref {reference!r} leads nowhere")
            inner = inner[step]
        return replace(spot, schema=inner, place=(*spot.root_place, *steps))

    def _only_alternative(self, spot: Spot, name: str) -> Spot:
        """The alternative that is not null, where there is exactly one; else the schema itself."""
        key = next((k for k in ALTERNATIVES if k in spot.schema), None)
        if key is None:
            return spot
        others = [o for o in self._alternatives(spot, name, key) if o.schema.get("type") != "null"]
        return others[0] if len(others) == 1 else spot

    def _alternatives(self, spot: Spot, name: str, key: str) -> list[Spot]:
        listed = spot.schema[key]
        if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
            raise self._error(spot, name, f"`{key}` is not a list of schemas")
        return [self._inside(spot, name, key, position) for position in range(len(listed))]

    def _inside(self, spot: Spot, name: str, *steps: str | int) -> Spot:
        """A schema in another one."""
        if spot.depth == DEEPEST:
            raise self._error(spot, name, f"alternatives inside each other, {DEEPEST} deep")
        return self._resolve(replace(spot.at(*steps), depth=spot.depth + 1), name)

    def _shape(self, spot: Spot, name: str) -> _Shape:
        schema = spot.schema
        nullable = is_nullable(schema)
        for key in ALTERNATIVES:
            if key in schema:
                alternatives = self._alternatives(spot, name, key)
                others = [self._shape(o, name) for o in alternatives if o.schema.get("type") != "null"]
                nullable = nullable or len(others) < len(alternatives) or any(o.nullable for o in others)
                return self._join(spot, name, others, nullable)
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return self._shape_of_enum(spot, name, values, nullable)
        if isinstance(schema.get("type"), list):
            each = (replace(spot, schema={**schema, "type": kind}) for kind in kinds_of(schema))
            return self._join(spot, name, [self._shape(one, name) for one in each], nullable)
        return replace(self._shape_of_type(spot, name), nullable=nullable)

    def _shape_of_type(self, spot: Spot, name: str) -> _Shape:
        kind = next(iter(kinds_of(spot.schema)), None)
        if kind is None:
            return _Shape("string", kind="untyped_as_text")
        if kind == "string":
            form = spot.schema.get("format")
            if form in ("date", "time"):
                return _Shape(form)
            return _Shape("string", kind="datetime_as_text" if form == "date-time" else "")
        if isinstance(kind, str) and kind in _PLAIN:
            return _Shape(_PLAIN[kind])
        if kind == "object":
            return _Shape("string", kind="object_as_text")
        if kind == "array":
            items = spot.schema.get("items", True)
            inner = self._resolve(replace(spot, schema=items, place=(*spot.place, "items")), name)
            values: tuple[str, ...] = ()
            if "enum" in inner.schema:
                values = self._shape_of_enum(inner, name, inner.schema["enum"], False).values
            return _Shape("string", values, kind="array_as_text")
        if kind == "null":
            raise self._error(spot, name, "accepts nothing but null")
        raise self._error(spot, name, f"unknown type {kind!r} (known: {', '.join(_KNOWN)})")

    def _shape_of_enum(self, spot: Spot, name: str, values: Any, nullable: bool) -> _Shape:
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise self._error(spot, name, "`enum` is not a list")
        plain = [value for value in values if value is not None]
        if not plain or any(isinstance(value, Mapping | list) for value in plain):
            raise self._error(spot, name, "an enum needs values, and they have to be plain")
        nullable = nullable or len(plain) < len(values)
        if all(isinstance(value, bool) for value in plain):
            return _Shape("boolean", nullable=nullable)
        texts = tuple(dict.fromkeys(str(v).lower() if isinstance(v, bool) else str(v) for v in plain))
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in plain)
        return _Shape("integer" if whole else "enum", texts, nullable)

    def _join(self, spot: Spot, name: str, shapes: Sequence[_Shape], nullable: bool) -> _Shape:
        """One shape for several alternatives."""
        if not shapes:
            raise self._error(spot, name, "accepts nothing but null")
        types = {shape.type for shape in shapes}
        values = tuple(dict.fromkeys(value for shape in shapes for value in shape.values))
        if len(shapes) == 1:
            return replace(shapes[0], nullable=nullable)
        if len(types) == 1:
            closed = all(shape.values for shape in shapes)
            kind = next((shape.kind for shape in shapes if shape.kind), "")
            return _Shape(shapes[0].type, values if closed else (), nullable, kind)
        if types == {"integer", "number"}:
            return _Shape("number", nullable=nullable)
        return _Shape("string", values, nullable, "union_as_text")

    def _error(self, spot: Spot, name: str, what: str) -> CatalogError:
        parameter = f", parameter {name!r}" if name else ""
        return CatalogError(f"{self.where(spot.place)}: tool {self.tool!r}{parameter}: {what}")


def _either(spots: Sequence[Spot]) -> Spot:
    """One schema for a property that several branches list."""
    first, *others = spots
    if all(other.schema == first.schema for other in others):
        return first
    return replace(first, schema={"anyOf": [spot.schema for spot in spots]})
