"""The 16 tools of tau-bench's retail shop, written anew: the same names, arguments, checks and answers.

An answer that begins with "Error: " changes nothing. Its text is tau-bench's wherever the arguments have the
right names and types; where they have not, tau-bench shows Python's message and this shows its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proactor.environments.errors import GymError
from proactor.environments.gyms.arithmetic import ExpressionError, evaluate, parse
from proactor.environments.gyms.tau_store import Record, Store

TRANSFER = "transfer_to_human_agents"
"""The tool that ends an episode."""

ADDRESS = ("address1", "address2", "city", "state", "country", "zip")
REASONS = ("no longer needed", "ordered by mistake")

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
    "reason": " or ".join(repr(reason) for reason in REASONS),
    "state": "state, two letters",
    "summary": "what the user's issue is",
    "thought": "the thought",
    "user_id": "the user's id",
    "zip": "zip code",
}
_LISTS = frozenset({"item_ids", "new_item_ids"})


class ToolRefusal(Exception):
    """What a tool answers after "Error: "."""


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


def _order(store: Store, order_id: str, status: str, otherwise: str) -> Record:
    order = store.read("orders", order_id)
    if order is None:
        raise ToolRefusal("order not found")
    if order["status"] != status:
        raise ToolRefusal(otherwise)
    return order


def _payment_method(store: Store, order: Record, name: str) -> Record:
    user = store.read("users", order["user_id"]) or {}
    if name not in user["payment_methods"]:
        raise ToolRefusal("payment method not found")
    method: Record = user["payment_methods"][name]
    return method


def _add_to_card(store: Store, order: Record, name: str, amount: float) -> None:
    """Pay back to a gift card, or from it where ``amount`` is negative."""
    card = store.change("users", order["user_id"])["payment_methods"][name]
    card["balance"] = round(card["balance"] + amount, 2)


def _check_items(order: Record, item_ids: Sequence[str], otherwise: str) -> None:
    has = [item["item_id"] for item in order["items"]]
    for item in item_ids:
        if item_ids.count(item) > has.count(item):
            raise ToolRefusal(otherwise.format(item))


def _first(order: Record, item_id: str) -> Record:
    return next(item for item in order["items"] if item["item_id"] == item_id)


def _variants(store: Store, item: Record) -> Record:
    product = store.read("products", item["product_id"]) or {}
    variants: Record = product["variants"]
    return variants


def _price_difference(store: Store, order: Record, old: Sequence[str], new: Sequence[str]) -> float:
    """What new items cost beyond old ones. Refused for items that are not in the order, or not to be had."""
    _check_items(order, old, "{} not found")
    if len(old) != len(new):
        raise ToolRefusal("the number of items to be exchanged should match")
    difference = 0.0
    for item_id, new_id in zip(old, new):
        item = _first(order, item_id)
        variants = _variants(store, item)
        if new_id not in variants or not variants[new_id]["available"]:
            raise ToolRefusal(f"new item {new_id} not found or available")
        difference += variants[new_id]["price"] - item["price"]
    return difference


def _check_card(method: Record, amount: float, purpose: str) -> None:
    if method["source"] == "gift_card" and method["balance"] < amount:
        raise ToolRefusal(f"insufficient gift card balance to pay for the {purpose}")


def _cancel(store: Store, order_id: str, reason: str) -> str:
    _order(store, order_id, "pending", "non-pending order cannot be cancelled")
    if reason not in REASONS:
        raise ToolRefusal("invalid reason")
    order = store.change("orders", order_id)
    refunds = []
    for payment in order["payment_history"]:
        name = payment["payment_method_id"]
        refunds.append({"transaction_type": "refund", "amount": payment["amount"], "payment_method_id": name})
        if "gift_card" in name:
            _add_to_card(store, order, name, payment["amount"])
    order["status"], order["cancel_reason"] = "cancelled", reason
    order["payment_history"].extend(refunds)
    return json.dumps(order)


def _exchange(
    store: Store, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
) -> str:
    order = _order(store, order_id, "delivered", "non-delivered order cannot be exchanged")
    difference = round(_price_difference(store, order, item_ids, new_item_ids), 2)
    _check_card(_payment_method(store, order, payment_method_id), difference, "price difference")
    order = store.change("orders", order_id)
    order["status"] = "exchange requested"
    order["exchange_items"], order["exchange_new_items"] = sorted(item_ids), sorted(new_item_ids)
    order["exchange_payment_method_id"] = payment_method_id
    order["exchange_price_difference"] = difference
    return json.dumps(order)


def _modify_items(
    store: Store, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
) -> str:
    order = _order(store, order_id, "pending", "non-pending order cannot be modified")
    difference = _price_difference(store, order, item_ids, new_item_ids)
    method = _payment_method(store, order, payment_method_id)
    _check_card(method, difference, "new item")
    order = store.change("orders", order_id)
    kind = "payment" if difference > 0 else "refund"
    order["payment_history"].append(
        {"transaction_type": kind, "amount": abs(difference), "payment_method_id": payment_method_id}
    )
    if method["source"] == "gift_card":
        _add_to_card(store, order, payment_method_id, -difference)
    for item_id, new_id in zip(item_ids, new_item_ids):
        item = _first(order, item_id)
        new = _variants(store, item)[new_id]
        item.update(item_id=new_id, price=new["price"], options=new["options"])
    order["status"] = "pending (item modified)"
    return json.dumps(order)


def _modify_payment(store: Store, order_id: str, payment_method_id: str) -> str:
    order = _order(store, order_id, "pending", "non-pending order cannot be modified")
    method = _payment_method(store, order, payment_method_id)
    paid = order["payment_history"]
    if len(paid) > 1 or paid[0]["transaction_type"] != "payment":
        raise ToolRefusal("there should be exactly one payment for a pending order")
    before, amount = paid[0]["payment_method_id"], paid[0]["amount"]
    if before == payment_method_id:
        raise ToolRefusal("the new payment method should be different from the current one")
    _check_card(method, amount, "order")
    order = store.change("orders", order_id)
    order["payment_history"].extend(
        [
            {"transaction_type": "payment", "amount": amount, "payment_method_id": payment_method_id},
            {"transaction_type": "refund", "amount": amount, "payment_method_id": before},
        ]
    )
    if method["source"] == "gift_card":
        _add_to_card(store, order, payment_method_id, -amount)
    if "gift_card" in before:
        _add_to_card(store, order, before, amount)
    return json.dumps(order)


def _modify_order_address(store: Store, order_id: str, **address: str) -> str:
    _order(store, order_id, "pending", "non-pending order cannot be modified")
    order = store.change("orders", order_id)
    order["address"] = _address(address)
    return json.dumps(order)


def _modify_user_address(store: Store, user_id: str, **address: str) -> str:
    if store.read("users", user_id) is None:
        raise ToolRefusal("user not found")
    user = store.change("users", user_id)
    user["address"] = _address(address)
    return json.dumps(user)


def _address(given: Mapping[str, str]) -> dict[str, str]:
    return {part: given[part] for part in ADDRESS}


def _return(store: Store, order_id: str, item_ids: list[str], payment_method_id: str) -> str:
    order = _order(store, order_id, "delivered", "non-delivered order cannot be returned")
    _payment_method(store, order, payment_method_id)
    paid = order["payment_history"][0]["payment_method_id"]
    if "gift_card" not in payment_method_id and payment_method_id != paid:
        raise ToolRefusal("payment method should be either the original payment method or a gift card")
    _check_items(order, item_ids, "some item not found")
    order = store.change("orders", order_id)
    order["status"], order["return_items"] = "return requested", sorted(item_ids)
    order["return_payment_method_id"] = payment_method_id
    return json.dumps(order)


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
    except (ArithmeticError, ExpressionError, GymError) as error:
        raise ToolRefusal(str(error)) from None


_ITEMS = ("order_id", "item_ids", "new_item_ids", "payment_method_id")
TOOLS = {
    "calculate": Tool("compute an expression", ("expression",), _calculate),
    "cancel_pending_order": Tool(
        "cancel an order that is pending; it is refunded. Ask the user to confirm first",
        ("order_id", "reason"),
        _cancel,
    ),
    "exchange_delivered_order_items": Tool(
        "exchange items of a delivered order for others of the same product, once. Ask the user to confirm",
        _ITEMS,
        _exchange,
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
        ("order_id", *ADDRESS),
        _modify_order_address,
    ),
    "modify_pending_order_items": Tool(
        "replace items of a pending order by others of the same product, once. Ask the user to confirm first",
        _ITEMS,
        _modify_items,
    ),
    "modify_pending_order_payment": Tool(
        "change how a pending order is paid. Ask the user to confirm first",
        ("order_id", "payment_method_id"),
        _modify_payment,
    ),
    "modify_user_address": Tool(
        "change a user's default address. Ask the user to confirm first",
        ("user_id", *ADDRESS),
        _modify_user_address,
    ),
    "return_delivered_order_items": Tool(
        "return items of a delivered order, to its payment method or a gift card. Ask the user to confirm first",
        ("order_id", "item_ids", "payment_method_id"),
        _return,
    ),
    "think": Tool("note a thought; nothing happens", ("thought",), lambda store, thought: ""),
    TRANSFER: Tool(
        "hand the user over to a human, where the tools cannot help",
        ("summary",),
        lambda store, summary: "Transfer successful",
    ),
}
"""In tau-bench's order."""
