"""YAML as configs, options and overrides write it: bounded, and every fault is one line with its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from proactor.files import SourceError, read_text

LONGEST_YAML = 2**20
"""Characters of a YAML text."""
MOST_NODES = 100_000
"""Keys and values of a YAML text, those of an alias counted again wherever it stands."""
LONGEST_NUMBER = 400
"""Characters of a number."""

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no annotations
    """Safe YAML with 1e-5 as a number (YAML 1.2). Errors: a key given twice, aliases that would grow without
    end, and values that are not what they or their tag say, as the date 2026-02-30.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _size(node, {}) > MOST_NODES:
            raise _fault(f"more than {MOST_NODES} keys and values, aliases unfolded", node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _fault(f"key {key.value!r} is given twice", key)
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        if node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
            raise _fault(f"a number of {len(node.value)} characters", node)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, ArithmeticError):  # yaml does not check them itself
            raise _fault(f"{node.value!r:.60} is no {node.tag.rpartition(':')[2]}", node) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises SourceError: ``where``, the line, and what is wrong."""
    if len(text) > LONGEST_YAML:
        raise SourceError(f"{where}: not YAML (more than {LONGEST_YAML} characters)")
    try:
        return yaml.load(text, _Loader)  # nosec B506 # a SafeLoader
    except RecursionError:
        raise SourceError(f"{where}: not YAML (nested too deeply)") from None
    except (ValueError, OverflowError) as error:  # an escape of a character that there is not
        raise SourceError(f"{where}: not YAML ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SourceError(f"{where}{f':{mark.line + 1}' if mark else ''}: not YAML ({problem})") from None


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys and values of a YAML file. SourceError names the line that is not YAML."""
    values = parse_yaml(read_text(file), str(file))
    if not isinstance(values, dict):
        raise SourceError(f"{file}: expected keys and values, found {type(values).__name__}")
    return values


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values in ``node``, aliases unfolded. ``known``: by id, those counted; 0 while one is."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    size = known.get(id(node))
    if size is None:
        known[id(node)] = 0
        parts = [part for pair in node.value for part in pair] if _is_mapping(node) else node.value
        size = known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    elif not size:
        raise _fault("an alias stands inside what it stands for", node)
    return size


def _is_mapping(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode)


def _fault(what: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)
