"""Tools as files, for the tests of their readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SERVICE = {
    "service_name": "Cars_1",
    "slots": [{"name": "day", "description": "", "is_categorical": False, "possible_values": []}],
    "intents": [
        {
            "name": "Rent",
            "description": "d",
            "is_transactional": True,
            "required_slots": ["day"],
            "optional_slots": {},
        }
    ],
}
API = {"input": [{"Name": "Day", "Type": "Categorical", "Categories": ["Friday"]}], "required": ["Day"]}


def put(folder: Path, value: Any, name: str = "tools.json") -> Path:
    file = folder / name
    file.write_text(value if isinstance(value, str) else json.dumps(value, indent=1), encoding="utf-8")
    return file


def function(name: Any = "a", **properties: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": properties}},
    }


PLAIN = {"type": "string"}
