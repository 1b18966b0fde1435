"""What the agent says in recorded episodes: sensible turns and every kind of nonsense, drawn by a seed."""

from __future__ import annotations

import json
import random
from typing import Any


def function_turns(record: dict[str, Any], rng: random.Random) -> list[str]:
    """Probes, searches and answers of a FunctionGym task."""
    numbers = [rng.randint(1, 10) for _ in range(4)]
    spaced = " ".join(map(str, numbers))
    test = " ".join(map(str, record["test_case"]))
    result = record["expected_result"]
    kinds = [
        f"[action] {spaced}",
        f"[action] {', '.join(map(str, numbers))}",
        f"[action]{numbers[0]}.5 {numbers[1]} -{numbers[2]} {numbers[3]}",
        f"[action] {numbers[0]} 0 0 {numbers[3]}",
        f"[action] {test}",
        f"[action] {test.replace(' ', '.0000000001 ', 1)}",
        "[action] 1e3 2 3",
        "[action] 1 2 3",
        "[action] one two",
        "[action]",
        "[search] test",
        "[search] TEST ",
        "[search] rule",
        f"[answer] {result + rng.randint(1, 3)}",
        f"[answer] {result + 2e-6}",
        "[answer] much",
        "[answer]",
        "[answer] inf",
        spaced,
        "[Action] 1 2 3 4",
        "",
    ]
    turns = rng.sample(kinds, rng.randint(3, 12))
    return [
        *turns,
        rng.choice(["[finish]", f"[answer] {result}", f"  [answer] {result + 5e-7}  ", "[search] test"]),
    ]


def intention_turns(record: dict[str, Any], rng: random.Random) -> list[str]:
    """Questions of an IntentionGym task."""
    details = record["missing_details"]
    kinds = [f"[action] {detail['inquiry']}" for detail in details]
    kinds += [f"[action] What about the {detail['description']}?" for detail in details]
    kinds += [f"[action] {rng.choice(details)['inquiry']} {rng.choice(details)['inquiry']}"]
    kinds += [
        f"[answer] {details[0]['inquiry']}",
        details[-1]["inquiry"],
        f"[search] {details[0]['description']}",
    ]
    kinds += ["[action] How is the weather?", "[action]", "", "[action] ?!"]
    turns = rng.sample(kinds, rng.randint(2, len(kinds)))
    return [*turns, rng.choice(["[finish]", "[FINISH] now", turns[0]])]


def tau_turns(record: dict[str, Any], rng: random.Random) -> list[str]:
    """An agent at tau-bench's retail desk that does its task, with mistakes between."""
    task = record["info"]["task"]
    turns = ["[action] May I have your name and zip code, or your email?"]
    turns += ["[action] What can I do for you?"] * rng.randint(1, 3)
    for action in task["actions"]:
        call = json.dumps({"name": action["name"], "arguments": action["kwargs"]})
        if rng.random() < 0.3:
            turns.append(rng.choice(_mistakes(action, task["user_id"])))
        if rng.random() < 0.5:
            turns.append("[action] I will change that. Do you confirm (yes/no)?")
        if rng.random() < 0.9:  # else the task is not done
            turns.append(
                f"[answer] {call}"
                if rng.random() < 0.7
                else f"[answer] {action['name']}: {json.dumps(action['kwargs'])}"
            )
        if rng.random() < 0.2:
            turns.append(f"[answer] {call}")
    told = " ".join(task["outputs"]) if rng.random() < 0.8 else ""
    turns.append(f"[action] Everything is done. {told}")
    turns += [rng.choice(["[action] Goodbye.", "[finish]", TRANSFER]), "[action] Goodbye.", TRANSFER]
    return turns


TRANSFER = '[answer] {"name": "transfer_to_human_agents", "arguments": {"summary": "done"}}'


def _mistakes(action: dict[str, Any], user: str) -> list[str]:
    wrong = dict(action["kwargs"])
    key = sorted(wrong)[0]
    wrong[key] = "#W0" if isinstance(wrong[key], str) else [*wrong[key], "0"]
    other = {**action["kwargs"], "payment_method_id": "gift_card_0"}
    details = {"name": "get_user_details", "arguments": {"user_id": user}}
    return [
        "[search] tools",
        "[search] help",
        "[search] orders",
        f"[answer] {json.dumps({'name': action['name'], 'arguments': wrong})}",
        f"[answer] {json.dumps({'name': 'sell', 'arguments': {}})}",
        f"[answer] {json.dumps(details)}",
        f"[answer] {json.dumps({'name': 'get_order_details', 'arguments': {'order_id': '#W0'}})}",
        f"[answer] {json.dumps({'name': 'return_delivered_order_items', 'arguments': other})}"
        if set(other) == {"order_id", "item_ids", "payment_method_id"}
        else '[answer] think: {"thought": "hm"}',
        '[answer] {"name": "list_all_product_types", "arguments": {}}',
        '[answer] {"name": "calculate", "arguments": {"expression": "(2 + 3) * 4 / 3"}}',
        '[answer] {"name": "calculate", "arguments": {"expression": "2 / 0"}}',
        '[answer] {"name": "calculate", "arguments": {"expression": "two"}}',
        '[answer] {"name": "respond", "arguments": {"content": "One moment, please?"}}',
        "[answer] {broken",
        '[answer] {"name": "think", "arguments": 3}',
        "hello",
    ]
