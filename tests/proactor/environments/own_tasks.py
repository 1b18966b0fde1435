"""Tasks of our own in UserRL's form, for tests that need none of its data."""

from __future__ import annotations

from typing import Any

from proactor.environments.gyms.arithmetic import parse
from proactor.environments.gyms.function import value_of

FUNCTIONS: list[dict[str, Any]] = [
    {
        "id": f"own-{number}",
        "rule": rule,
        "test_case": test,
        "expected_result": value_of(parse(rule, "abcd"), test),
    }
    for number, (rule, test) in enumerate(
        [
            ("a + b * c - d", [2, 3, 4, 5]),
            ("(a - b) / (c - d)", [9, 4, 7, 3]),
            ("a ** b - c * d", [3, 4, 2, 6]),
            ("(a + d) ** 2 / b + c", [1, 8, 3, 5]),
            ("d / c / b / a", [2, 3, 7, 5]),
            ("-a + b - c ** 2 * d", [4, 6, 2, 3]),
        ]
    )
]


def _details(*rows: tuple[str, str, str, list[str]]) -> list[dict[str, Any]]:
    return [dict(zip(("description", "importance", "inquiry", "options"), row)) for row in rows]


INTENTIONS: list[dict[str, Any]] = [
    {
        "id": "oslo",
        "category": "Travel",
        "task": "Plan a trip to Oslo.",
        "missing_details": _details(
            ("Length of the trip", "3", "How long do you plan to stay in Oslo?", ["A week", "A weekend"]),
            ("Budget", "2", "What can you spend on the trip to Oslo?", ["Little", "Much"]),
            ("Dining", "1", "Which food do you like to eat?", ["Local dishes", "Vegetarian meals"]),
        ),
    },
    {
        "id": "cake",
        "category": "Cooking",
        "task": "Find me a recipe for a cake.",
        "missing_details": _details(
            ("Occasion", "2", "Which occasion is the cake for?", ["A birthday", "A wedding", "No occasion"]),
            ("Allergies", "3", "Does anybody have allergies?", ["Nuts", "Milk", "None"]),
            ("Number of guests", "1", "How many guests will eat it?", ["Four", "Twenty"]),
            ("Skill", "1", "How often have you baked before?", ["Never", "Often"]),
        ),
    },
    {
        "id": "bike",
        "category": "Sport",
        "task": "I want to buy a bicycle.",
        "missing_details": _details(
            ("Terrain", "3", "Will you ride on roads or on trails?", ["Roads", "Trails", "Both"])
        ),
    },
]


ENTITIES: list[dict[str, Any]] = [
    {"id": name, "title": title, "description": told, "target_entity": f"{title} - {known}"}
    for name, title, told, known in [
        ("own-piano", "Piano", "An instrument.", "has keys"),
        ("own-otter", "Otter", "An animal.", "swims"),
        ("own-oslo", "Oslo", "A city.", "lies in Norway"),
        ("own-tea", "Tea", "A drink.", "is brewed"),
        ("entity_021", "Chess", "A game.", "has kings"),  # one of UserRL's ids of tests
    ]
]


def _story(name: str, surface: str, bottom: str, *criteria: tuple[str, float]) -> dict[str, Any]:
    evaluation = [{"statement": statement, "score": score} for statement, score in criteria]
    return {"id": name, "new_surface": surface, "new_bottom": bottom, "evaluation": evaluation}


STORIES: list[dict[str, Any]] = [
    _story(
        "own-photo",
        "A photo shocked me.",
        "She was her sister.",
        ("They are sisters.", 3),
        ("There is a photo.", 1),
    ),
    _story("own-lift", "He takes the stairs on dry days.", "He is short.", ("He is short.", 1)),
    _story("own-bar", "He asks for water and is shown a gun.", "He had hiccups.", ("He had hiccups.", 2)),
    _story("own-field", "A man lies in a field.", "His parachute failed.", ("A parachute failed.", 1)),
    _story("1", "The music stops and she dies.", "A tightrope.", ("She walked on a rope.", 1)),
]
"""The last one has one of UserRL's ids of tests."""
