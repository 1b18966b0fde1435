"""Parts of a config that name their kind: a judge, a user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from proactor.engine import ProactorError

Part = TypeVar("Part")


def build_kind(
    what: str,
    spec: str | Mapping[str, Any],
    kinds: Mapping[str, Callable[..., Part]],
    refusal: type[ProactorError],
) -> Part:
    """The part that ``spec`` describes: a name of ``kinds``, or a mapping with ``kind`` and what that takes.

    Raises ``refusal``, which begins with ``what``, for an unknown kind or field.
    """
    fields: dict[str, Any] = {"kind": spec} if isinstance(spec, str) else dict(spec)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise refusal(f"{what}: {kind!r} is not one of {', '.join(kinds)}")
    try:
        return kinds[kind](**fields)
    except TypeError as error:
        reason = str(error).rpartition("__init__() ")[2]
        raise refusal(f"{what} {kind}: {reason}") from None
