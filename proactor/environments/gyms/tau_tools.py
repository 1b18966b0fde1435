"""The 16 tools of tau-bench's retail shop, written anew: the same names, arguments, checks and answers.

An answer that begins with "Error: " changes nothing. Its text is tau-bench's wherever the arguments have the
right names and types; where they have not, tau-bench shows Python's message and this shows its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from proactor.environments.gyms import tau_changes
from proactor.environments.gyms.arithmetic import ExpressionError, evaluate, parse
from proactor.environments.gyms.tau_store import Record, Store, ToolRefusal

TRANSFER = "transfer_to_human_agents"
"""The tool that ends an episode."""

_ABOUT = {
    "address1": "street and number",
    "address2": "suite or flat, may be empty",
    "city": "city",
    "country": "country",
    "email": "the user's email address",
    "expression": "numbers, + - * / and parentheses",
    "first_name": "the user's first name",
    "item_ids": "ids of items of the order",
    "last_name": "the user's last name",
    "new_item_ids": "ids of the items to have instead, in the same order and of the same products",
    "order_id": "the order's id, with its #",
    "payment_method_id": "id of one of the user's payment methods",
    "product_id": "the product's id, which is not an item's",
    "reason": " or ".join(repr(reason) for reason in tau_changes.REASONS),
    "state": "state, two letters",
    "summary": "what the user's issue is",
    "thought": "the thought",
    "user_id": "the user's id",
    "zip": "zip code",
}
_LISTS = frozenset({"item_ids", "new_item_ids"})


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool: what it does, its arguments in their order, and the function behind it."""

    about: str
    arguments: tuple[str, ...]
    run: Callable[..., str]


def invoke(store: Store, name: str, arguments: Mapping[str, Any]) -> str:
    """A tool's answer. Raises KeyError for a tool that there is not."""
    tool = TOOLS[name]
    try:
        _check(tool, arguments)
        return tool.run(store, **arguments)
    except ToolRefusal as refusal:
        return f"Error: {refusal}"


def described() -> str:
    """All tools and their arguments, as the agent is told."""
    lines = ["Available Tools:"]
    for name, tool in TOOLS.items():
        lines.append(f"- {name}: {tool.about}")
        if tool.arguments:
            lines.append("  Parameters:")
            lines += [f"    - {argument}: {_ABOUT[argument]}" for argument in tool.arguments]
    return "\n".join(lines)


def _check(tool: Tool, arguments: Mapping[str, Any]) -> None:
    for name in tool.arguments:
        if name not in arguments:
            raise ToolRefusal(f"missing argument {name!r}")
        value = arguments[name]
        if name in _LISTS:
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ToolRefusal(f"argument {name!r} must be a list of strings")
        elif not isinstance(value, str):
            raise ToolRefusal(f"argument {name!r} must be a string")
    for name in arguments:
        if name not in tool.arguments:
            raise ToolRefusal(f"unknown argument {name!r}")


def _find_user(store: Store, fits: Callable[[Record], bool]) -> str:
    for user_id in store.base.users:
        user = store.read("users", user_id)
        if user is not None and fits(user):
            return user_id
    raise ToolRefusal("user not found")


def _find_by_email(store: Store, email: str) -> str:
    return _find_user(store, lambda user: user["email"].lower() == email.lower())


def _find_by_name(store: Store, first_name: str, last_name: str, zip: str) -> str:
    wanted = (first_name.lower(), last_name.lower(), zip)

    def fits(user: Record) -> bool:
        name = user["name"]
        return wanted == (name["first_name"].lower(), name["last_name"].lower(), user["address"]["zip"])

    return _find_user(store, fits)


def _shown(record: Record | None, what: str) -> str:
    if record is None:
        raise ToolRefusal(f"{what} not found")
    return json.dumps(record)


def _list_products(store: Store) -> str:
    names = {product["name"]: product["product_id"] for product in store.base.products.values()}
    return json.dumps(dict(sorted(names.items())))


def _calculate(store: Store, expression: str) -> str:
    if not set(expression) <= set("0123456789+-*/(). "):
        raise ToolRefusal("invalid characters in expression")
    try:
        return str(round(float(evaluate(parse(expression), {})), 2))
    except (ArithmeticError, ExpressionError) as error:
        raise ToolRefusal(str(error)) from None


_ITEMS = ("order_id", "item_ids", "new_item_ids", "payment_method_id")
TOOLS = {
    "calculate": Tool("compute an expression", ("expression",), _calculate),
    "cancel_pending_order": Tool(
        "cancel an order that is pending; it is refunded. Ask the user to confirm first",
        ("order_id", "reason"),
        tau_changes.cancel,
    ),
    "exchange_delivered_order_items": Tool(
        "exchange items of a delivered order for others of the same product, once. Ask the user to confirm",
        _ITEMS,
        tau_changes.exchange,
    ),
    "find_user_id_by_email": Tool("a user's id", ("email",), _find_by_email),
    "find_user_id_by_name_zip": Tool(
        "a user's id, where the email is not known", ("first_name", "last_name", "zip"), _find_by_name
    ),
    "get_order_details": Tool(
        "an order with its items, status and payments",
        ("order_id",),
        lambda store, order_id: _shown(store.read("orders", order_id), "order"),
    ),
    "get_product_details": Tool(
        "a product with its items, their options, prices and whether they are to be had",
        ("product_id",),
        lambda store, product_id: _shown(store.read("products", product_id), "product"),
    ),
    "get_user_details": Tool(
        "a user with address, payment methods and orders",
        ("user_id",),
        lambda store, user_id: _shown(store.read("users", user_id), "user"),
    ),
    "list_all_product_types": Tool("names and ids of all products", (), _list_products),
    "modify_pending_order_address": Tool(
        "change where a pending order is sent. Ask the user to confirm first",
        ("order_id", *tau_changes.ADDRESS),
        tau_changes.modify_order_address,
    ),
    "modify_pending_order_items": Tool(
        "replace items of a pending order by others of the same product, once. Ask the user to confirm first",
        _ITEMS,
        tau_changes.modify_items,
    ),
    "modify_pending_order_payment": Tool(
        "change how a pending order is paid. Ask the user to confirm first",
        ("order_id", "payment_method_id"),
        tau_changes.modify_payment,
    ),
    "modify_user_address": Tool(
        "change a user's default address. Ask the user to confirm first",
        ("user_id", *tau_changes.ADDRESS),
        tau_changes.modify_user_address,
    ),
    "return_delivered_order_items": Tool(
        "return items of a delivered order, refunded as paid or to a gift card. Ask the user to confirm",
        ("order_id", "item_ids", "payment_method_id"),
        tau_changes.return_items,
    ),
    "think": Tool("note a thought; nothing happens", ("thought",), lambda store, thought: ""),
    TRANSFER: Tool(
        "hand the user over to a human, where the tools cannot help",
        ("summary",),
        lambda store, summary: "Transfer successful",
    ),
}
"""In tau-bench's order."""
