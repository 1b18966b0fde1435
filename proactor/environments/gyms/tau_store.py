"""The database of tau-bench's retail shop: orders, products and users, shared, with each episode's changes.

The three files are tau-bench's (MIT; ``tau_bench/envs/retail/data`` of sierra-research/tau-bench) and are not
part of this package.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from proactor.files import SourceError, read_json

Record = dict[str, Any]
Table = Literal["orders", "products", "users"]
TABLES: tuple[Table, ...] = ("orders", "products", "users")


class ToolRefusal(Exception):
    """What a tool answers after "Error: "."""


@dataclass(frozen=True)
class Database:
    """The tables before anything happened; nobody changes them."""

    orders: Mapping[str, Record]
    products: Mapping[str, Record]
    users: Mapping[str, Record]

    def __deepcopy__(self, memo: object) -> Database:
        return self

    @classmethod
    def read(cls, folder: str | Path) -> Database:
        """The tables of a folder. Raises SourceError for one that is absent or holds something else."""
        tables = {}
        for name in TABLES:
            file = Path(folder) / f"{name}.json"
            table = read_json(file)
            if not isinstance(table, dict) or not all(isinstance(record, dict) for record in table.values()):
                raise SourceError(f"{file}: not a table of {name} by their ids")
            tables[name] = table
        return cls(**tables)


class Store:
    """A database as an episode changed it."""

    def __init__(self, base: Database) -> None:
        self.base = base
        self.changed: dict[Table, dict[str, Record]] = {name: {} for name in TABLES}

    def read(self, table: Table, key: str) -> Record | None:
        """A record as it is now, not to be changed; None where there is none."""
        before: Mapping[str, Record] = getattr(self.base, table)
        return self.changed[table].get(key, before.get(key))

    def change(self, table: Table, key: str) -> Record:
        """A record of this episode's own, to be changed."""
        if key not in self.changed[table]:
            self.changed[table][key] = copy.deepcopy(getattr(self.base, table)[key])
        return self.changed[table][key]

    def same(self, other: Store) -> bool:
        """Whether two episodes left the same database behind."""
        return all(
            _text(self.read(table, key)) == _text(other.read(table, key))
            for table in TABLES
            for key in self.changed[table].keys() | other.changed[table].keys()
        )


def _text(record: Record | None) -> str:
    """A record as text: 1 and 1.0 differ, as in tau-bench's hash; the order of keys does not matter."""
    return json.dumps(record, sort_keys=True)
