"""Tau: the store's bookkeeping, what the tools check, the reward, the rule customer; and bad input."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.environments.errors import EpisodeOver
from proactor.environments.gyms.tau import TauGym, TauTask, TauWorld, read_tool_call
from proactor.environments.gyms.tau_customer import STOP, UNKNOWN, RuleCustomer
from proactor.environments.gyms.tau_store import Database, Store
from proactor.environments.gyms.tau_tools import TOOLS, invoke
from proactor.environments.protocol import Call
from proactor.files import SourceError
from tests.proactor.environments import shop

DATABASE = Database(**copy.deepcopy(shop.TABLES))
TASKS = {record["id"]: record for record in shop.TASKS}
TRANSFER = Call("answer", json.dumps({"name": "transfer_to_human_agents", "arguments": {"summary": ""}}))


def task(number: int) -> TauTask:
    record = shop.TASKS[number]
    script = record["info"]["task"]
    actions = tuple((action["name"], action["kwargs"]) for action in script["actions"])
    return TauTask(record["id"], record["obs"], script["instruction"], actions, tuple(script["outputs"]))


def world(number: int, max_turns: int = 30) -> TauWorld:
    made = TauWorld(task(number), DATABASE, max_turns)
    made.reset(0)
    return made


def call(name: str, arguments: dict[str, Any]) -> Call:
    return Call("answer", json.dumps({"name": name, "arguments": arguments}))


def done(made: TauWorld, *said: str, actions: int | None = None) -> float:
    """Do the task's first actions, say something, hand over: the reward."""
    for name, arguments in made.task.actions[:actions]:
        made.step(call(name, arguments))
    for message in said:
        made.step(Call("action", message))
    outcome = made.step(TRANSFER)
    assert outcome.terminated
    return outcome.reward


@pytest.mark.parametrize("number", [0, 1, 3])
def test_the_tasks_own_actions_earn_the_reward_and_nothing_less(number: int) -> None:
    assert done(world(number)) == 1
    assert done(world(number), actions=len(task(number).actions) - 1) == 0
    assert json.dumps(shop.TABLES) == json.dumps(DATABASE.__dict__)  # nobody changed it


def test_what_the_customer_wanted_to_know_must_be_said() -> None:
    assert done(world(2), "There are 4 kinds. Anything?") == 1
    assert done(world(2), "There are some kinds. Anything?") == 0
    assert done(world(2), "There are 4 kinds. Anything?", actions=1) == 0


def test_changes_that_cancel_out_leave_the_same_database() -> None:
    made = world(2)
    street = shop.USERS["ada_moe_1001"]["address"]
    made.step(call("modify_user_address", {"user_id": "ada_moe_1001", **street, "city": "Rome"}))
    made.step(call("modify_user_address", {"user_id": "ada_moe_1001", **street}))
    assert done(made, "4?") == 1


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("cancel_pending_order", {"order_id": "#W9"}, "order not found"),
        ("cancel_pending_order", {"order_id": "#W4"}, "non-pending order cannot be cancelled"),
        ("cancel_pending_order", {"reason": "bored"}, "invalid reason"),
        ("cancel_pending_order", {"order_id": 3}, "argument 'order_id' must be a string"),
        ("cancel_pending_order", {"now": "yes"}, "unknown argument 'now'"),
        ("modify_pending_order_items", {"item_ids": ["11", "11", "11"]}, "11 not found"),
        ("modify_pending_order_items", {"item_ids": "11"}, "argument 'item_ids' must be a list of strings"),
        ("modify_pending_order_items", {"new_item_ids": ["14"]}, "new item 14 not found or available"),
        ("modify_pending_order_items", {"new_item_ids": ["21"]}, "new item 21 not found or available"),
        (
            "modify_pending_order_items",
            {"new_item_ids": []},
            "the number of items to be exchanged should match",
        ),
        ("modify_pending_order_items", {"payment_method_id": "paypal_3"}, "payment method not found"),
        (
            "modify_pending_order_payment",
            {"payment_method_id": "gift_card_2"},
            "the new payment method should be",
        ),
        ("return_delivered_order_items", {"order_id": "#W1"}, "non-delivered order cannot be returned"),
        ("return_delivered_order_items", {"item_ids": ["22"]}, "some item not found"),
        ("exchange_delivered_order_items", {"order_id": "#W1"}, "non-delivered order cannot be exchanged"),
    ],
)
def test_a_refused_tool_says_why_and_changes_nothing(name: str, change: dict[str, Any], said: str) -> None:
    right = {name: arguments for number in range(4) for name, arguments in task(number).actions}[name]
    store = Store(DATABASE)
    assert invoke(store, name, {**right, **change}).startswith(f"Error: {said}")
    assert store.same(Store(DATABASE))


def test_a_missing_argument() -> None:
    assert invoke(Store(DATABASE), "get_order_details", {}) == "Error: missing argument 'order_id'"


def test_gift_cards_pay_and_are_paid_back() -> None:
    store = Store(DATABASE)

    def balance() -> float:
        return store.read("users", "ada_moe_1001")["payment_methods"]["gift_card_2"]["balance"]

    items = {
        "order_id": "#W1",
        "item_ids": ["11"],
        "new_item_ids": ["12"],
        "payment_method_id": "gift_card_2",
    }
    order = json.loads(invoke(store, "modify_pending_order_items", items))
    assert balance() == 26.25 and order["status"] == "pending (item modified)"
    assert order["payment_history"][-1] == {
        "transaction_type": "payment",
        "amount": 3.75,
        "payment_method_id": "gift_card_2",
    }
    store = Store(DATABASE)
    invoke(store, "cancel_pending_order", {"order_id": "#W1", "reason": "no longer needed"})
    assert balance() == 51.0
    store = Store(DATABASE)
    assert "insufficient" in invoke(
        store, "modify_pending_order_payment", {"order_id": "#W2", "payment_method_id": "gift_card_2"}
    )
    invoke(store, "modify_pending_order_payment", {"order_id": "#W1", "payment_method_id": "credit_card_1"})
    assert balance() == 51.0


def test_an_exchange_of_nothing_costs_the_integer_0() -> None:
    nothing = {"order_id": "#W3", "item_ids": [], "new_item_ids": [], "payment_method_id": "credit_card_1"}
    answer = invoke(Store(DATABASE), "exchange_delivered_order_items", nothing)
    assert answer.endswith('"exchange_price_difference": 0}')


OPERATIONS = st.lists(
    st.sampled_from(
        [action for number in range(4) for action in task(number).actions]
        + [("get_user_details", {"user_id": "bo_lie_1002"}), ("list_all_product_types", {})]
    ),
    max_size=6,
)


@settings(max_examples=40)
@given(OPERATIONS)
def test_a_store_is_a_plain_copy_of_the_database(actions: list[tuple[str, dict[str, Any]]]) -> None:
    store = Store(DATABASE)
    alone = Store(Database(**copy.deepcopy(shop.TABLES)))
    for name, arguments in actions:
        assert invoke(store, name, arguments) == invoke(alone, name, arguments)
    assert store.same(alone) and alone.same(store)
    untouched = all(name.startswith(("get", "list", "find")) for name, _ in actions)
    assert store.same(Store(DATABASE)) == untouched
    assert json.dumps(shop.TABLES) == json.dumps(DATABASE.__dict__)


@pytest.mark.parametrize(
    ("content", "read"),
    [
        ('{"name": "think", "arguments": {"thought": "a"}}', ("think", {"thought": "a"})),
        ('think: {"thought": "a"}', ("think", {"thought": "a"})),
        ("{}", ("", {})),
        ('{"name": "think", "arguments": []}', None),
        ('{"name": 3}', None),
        ("think", None),
        ("think: [1]", None),
        ("{broken}", None),
        ("", None),
    ],
)
def test_tool_calls_are_read(content: str, read: tuple[str, dict] | None) -> None:
    assert read_tool_call(content) == read


def test_what_the_agent_is_told(tmp_path: Path) -> None:
    made = world(0, max_turns=9)
    said = [
        made.step(Call(verb, content)).observation
        for verb, content in [
            ("search", "Tools"),
            ("search", "tools"),
            ("search", "help"),
            ("search", "shoes"),
            ("answer", "sell it"),
            ("answer", '{"name": "sell", "arguments": {}}'),
            ("answer", '{"name": "respond", "arguments": {}}'),
            ("guess", "hello"),
        ]
    ]
    assert all(f"- {name}: " in said[0] for name in TOOLS) and said[1].startswith(
        "Tools information is already"
    )
    assert said[3].startswith("Search not supported for 'shoes'")
    assert said[4].startswith("Invalid tool call format.") and said[5] == "Unknown action sell"
    assert said[6].startswith("Error executing tool call") and said[7].startswith(
        "Invalid action format: hello."
    )
    last = made.step(Call("finish"))
    assert (last.terminated, last.truncated, last.reward) == (True, True, 0.0)
    with pytest.raises(EpisodeOver):
        made.step(TRANSFER)


def test_the_customer() -> None:
    customer = RuleCustomer(task(1).instruction, "Hi.")
    said = [
        customer.reply(message)
        for message in [
            "May I have your name and zip code?",
            "How can I help?",
            "I will modify the mug, for the zip code 10001. Do you confirm (yes/no)?",
            "That is done. Anything else?",
            "Which colour?",
            "Which colour?",
        ]
    ]
    assert said == [
        "My name is Ada Moe and my zip code is 10001.",
        "For #W1, modify Mug {'color': 'red'} to {'color': 'blue'}; via gift_card_2.",
        "Yes, please.",
        "Return #W3 via gift_card_2: Lamp;",
        UNKNOWN,
        STOP,
    ]
    other = RuleCustomer(task(2).instruction, "Hi.")
    assert other.identity == "My name is Bo Lie and my email is bo.lie2@example.com."
    assert other.requests[-1] == "I also want to exchange my lamp to one with USB."
    assert other.reply("What do you want?").startswith("I want to know how many kinds")


def test_the_customer_ends_the_conversation(tmp_path: Path) -> None:
    made = world(0)
    made.step(Call("action", "What can I do?"))
    made.step(call(*made.task.actions[0]))
    outcome = made.step(Call("action", "It is cancelled."))
    assert (outcome.observation, outcome.reward, outcome.terminated) == (STOP, 1.0, True)


@pytest.mark.parametrize(
    ("table", "content", "said"),
    [("orders", "[]", "orders.json: not a table of orders"), ("users", "{", "users.json:1: not JSON")],
)
def test_a_wrong_table_is_named(tmp_path: Path, table: str, content: str, said: str) -> None:
    (tmp_path / "tau.json").write_text(json.dumps(shop.TASKS))
    for name, rows in shop.TABLES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    assert TauGym(tmp_path, tmp_path).tasks("train") == list(TASKS)
    (tmp_path / f"{table}.json").write_text(content)
    with pytest.raises(SourceError, match=said):
        TauGym(tmp_path, tmp_path)
