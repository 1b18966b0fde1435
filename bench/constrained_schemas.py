"""Fifty JSON schemas for `bench.constrained`: arguments of tools, verdicts, extraction, and each keyword that
can be kept to. Texts are bounded, so that a model without any sense comes to an end.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

WORD: Schema = {"type": "string", "maxLength": 12}
TEXT: Schema = {"type": "string", "maxLength": 40}
INTEGER: Schema = {"type": "integer", "minimum": -1000, "maximum": 1000}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
FLAG: Schema = {"type": "boolean"}


def enum(*values: Any) -> Schema:
    return {"enum": list(values)}


def pattern(regex: str, **more: Any) -> Schema:
    return {"type": "string", "pattern": regex, **more}


def form(name: str) -> Schema:
    return {"type": "string", "format": name, "maxLength": 40}


DATE = {**form("date"), "pattern": r"^20[0-9]{2}-[0-9]{2}-([01][0-9]|2[0-8])$"}
"""The format is RFC 3339's syntax, which has 29 February in every year and a year 0; the validator's calendar
has not.
"""
INSTANT = {**form("date-time"), "pattern": r"^20[0-9]{2}-[0-9]{2}-([01][0-9]|2[0-8])T"}


def array(items: Schema, most: int = 3, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def record(optional: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object of these properties alone."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def call(name: str, arguments: Schema) -> Schema:
    return record(name={"const": name}, arguments=arguments)


ADDRESS = record(("line",), street=WORD, number=INTEGER, code=pattern(r"^[0-9]{5}$"), line=TEXT)
POINT = record(x=SHARE, y=SHARE)

TOOLS: dict[str, Schema] = {
    "book repair": record(
        ("note",), device=enum("phone", "laptop", "tablet"), day=DATE, time=form("time"), note=TEXT
    ),
    "find restaurant": record(
        ("price", "open"),
        city=WORD,
        cuisine=enum("thai", "italian", "any"),
        price={"type": "integer", "minimum": 1, "maximum": 4},
        open=FLAG,
    ),
    "transfer": record(
        iban=pattern(r"^[A-Z]{2}[0-9]{2}[A-Z0-9]{11,16}$"),
        amount={"type": "number", "exclusiveMinimum": 0, "maximum": 5000},
        currency=enum("EUR", "USD", "CHF"),
    ),
    "ride": record(pickup=ADDRESS, dropoff=ADDRESS, seats={"type": "integer", "minimum": 1, "maximum": 6}),
    "calendar": record(("guests",), title=TEXT, start=INSTANT, guests=array(form("email"))),
    "lamp": record(on=FLAG, level={"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": 5}),
    "search": record(("limit",), query={"type": "string", "minLength": 1, "maxLength": 30}, limit=INTEGER),
    "no arguments": record(),
    "two calls": {"anyOf": [call("look_up", record(day=WORD)), call("cancel", record(id=INTEGER))]},
    "list of calls": array({"anyOf": [call("a", record(n=INTEGER)), call("b", record(s=WORD))]}, 3, 1),
}

JUDGES: dict[str, Schema] = {
    "verdict": record(
        scores=array(record(id=enum("1", "2", "3"), explanation=TEXT, score=SHARE), most=4, least=1)
    ),
    "verdict in parts": record(relevance=SHARE, timing=SHARE, restraint=SHARE, score=SHARE),
    "grade": record(grade={"type": "integer", "minimum": 1, "maximum": 5}, why=TEXT),
    "yes or no": record(answer=enum("yes", "no", "maybe")),
    "ranking": {"type": "array", "items": enum("a", "b", "c", "d"), "minItems": 4, "maxItems": 4},
    "pair": {"type": "array", "prefixItems": [enum("left", "right"), SHARE], "items": False, "minItems": 2},
    "marks": record(
        actions=array(
            record(
                name=enum("book", "cancel"), status=enum("ready", "waits"), params=record(("day",), day=WORD)
            )
        )
    ),
    "bare enum": enum("accept", "reject", 1, 2.5, None, True, 'ä"ö'),
    "bare boolean": FLAG,
    "bare number": {"type": "number", "minimum": -10, "maximum": 10},
}

EXTRACTION: dict[str, Schema] = {
    "person": record(("email", "born"), name=WORD, email=form("email"), born=DATE),
    "invoice": record(
        number=pattern(r"^INV-[0-9]{6}$"),
        lines=array(record(what=WORD, price={"type": "number", "minimum": 0, "maximum": 999}), 4, 1),
        paid=FLAG,
    ),
    "nullable": record(
        middle={"type": ["string", "null"], "maxLength": 8}, age={"type": ["integer", "null"]}
    ),
    "map of numbers": {"type": "object", "additionalProperties": INTEGER, "maxProperties": 4},
    "map of names": {
        "type": "object",
        "patternProperties": {"^k_[a-z]{1,3}$": FLAG},
        "additionalProperties": False,
        "maxProperties": 3,
    },
    "open object": {
        "type": "object",
        "properties": {"id": INTEGER},
        "required": ["id"],
        "additionalProperties": {"type": "string", "maxLength": 5},
        "maxProperties": 3,
    },
    "odd keys": {
        "type": "object",
        "properties": {"größe": INTEGER, "naïve key": FLAG, 'with "quotes"': WORD},
        "required": ["größe", "naïve key", 'with "quotes"'],
        "additionalProperties": False,
    },
    "many properties": {
        "type": "object",
        "properties": {f"p{i}": INTEGER for i in range(20)},
        "additionalProperties": False,
    },
    "matrix": array(array(INTEGER, 3, 3), 3, 3),
    "deep": record(a=record(b=record(c=record(d=record(e=array(record(f=FLAG), 2)))))),
}

REFERENCES: dict[str, Schema] = {
    "tree": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"value": INTEGER, "left": {"$ref": "#/$defs/node"}},
                "required": ["value"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "linked list": record(("next",), head=WORD, next={"$ref": "#"}),
    "definitions": {
        "definitions": {"point": POINT},
        **record(start={"$ref": "#/definitions/point"}, end={"$ref": "#/definitions/point"}),
    },
    "expression": {
        "$defs": {
            "value": {"anyOf": [INTEGER, {"$ref": "#/$defs/sum"}]},
            "sum": record(op=enum("+", "-"), left=INTEGER, right={"$ref": "#/$defs/value"}),
        },
        "$ref": "#/$defs/value",
    },
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
            {"type": "object", "properties": {"b": WORD}, "required": ["b"]},
        ],
        "properties": {"a": True, "b": True},
        "additionalProperties": False,
    },
    "one of kinds": {
        "oneOf": [
            record(kind={"const": "circle"}, r=SHARE),
            record(kind={"const": "box"}, w=SHARE, h=SHARE),
        ]
    },
    "any of types": {"anyOf": [{"type": "string", "maxLength": 6}, INTEGER, FLAG, {"type": "null"}]},
    "shared parts": {
        "$defs": {"money": record(amount=INTEGER, unit=enum("EUR", "USD"))},
        **record(price={"$ref": "#/$defs/money"}, fee={"$ref": "#/$defs/money"}),
    },
    "constant": {"const": {"a": [1, "two", None], "b": {"c": False}}},
    "type by type": record(
        ("t",), s=WORD, i=INTEGER, n=SHARE, b=FLAG, z={"type": "null"}, t={"type": "array", "maxItems": 0}
    ),
}

STRINGS: dict[str, Schema] = {
    "dates": record(d=DATE, t=form("time"), dt=INSTANT, p=form("duration")),
    "addresses": record(v4=form("ipv4"), v6=form("ipv6"), host=form("hostname")),
    "uuid": record(id=form("uuid")),
    "lengths": record(three={"type": "string", "minLength": 3, "maxLength": 3}, some=WORD),
    "alternatives": record(id=pattern(r"^(A|B)-[0-9]+$", maxLength=8), tag=pattern(r"^#[0-9a-f]{6}$")),
    "inside": record(has=pattern(r"[0-9]{2}", maxLength=10)),
    "words": record(sentence=pattern(r"^[a-z]{1,6}( [a-z]{1,6}){0,4}\.$")),
    "escapes": record(path=pattern(r'^"[\\/]"$')),
    "multiples": record(
        dozen={"type": "integer", "minimum": 0, "maximum": 120, "multipleOf": 12},
        half={"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.5},
    ),
    "bounds": record(
        open={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        below={"type": "integer", "exclusiveMaximum": 0, "minimum": -99},
        large={"type": "integer", "minimum": 10**6, "maximum": 10**7},
    ),
}

SCHEMAS: dict[str, Schema] = TOOLS | JUDGES | EXTRACTION | REFERENCES | STRINGS
