"""What tau-bench's retail tools change in orders and users, with their checks in tau-bench's order.

Each function returns the changed record as JSON, or raises ToolRefusal and has changed nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from proactor.environments.gyms.tau_store import Record, Store, ToolRefusal

ADDRESS = ("address1", "address2", "city", "state", "country", "zip")
REASONS = ("no longer needed", "ordered by mistake")


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
    difference: float = 0
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


def cancel(store: Store, order_id: str, reason: str) -> str:
    """Cancel a pending order and refund it, to a gift card at once."""
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


def exchange(
    store: Store, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
) -> str:
    """Exchange items of a delivered order; the price difference is noted, not yet paid."""
    order = _order(store, order_id, "delivered", "non-delivered order cannot be exchanged")
    difference = round(_price_difference(store, order, item_ids, new_item_ids), 2)
    _check_card(_payment_method(store, order, payment_method_id), difference, "price difference")
    order = store.change("orders", order_id)
    order["status"] = "exchange requested"
    order["exchange_items"], order["exchange_new_items"] = sorted(item_ids), sorted(new_item_ids)
    order["exchange_payment_method_id"] = payment_method_id
    order["exchange_price_difference"] = difference
    return json.dumps(order)


def modify_items(
    store: Store, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
) -> str:
    """Replace items of a pending order; the price difference is paid or refunded."""
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


def modify_payment(store: Store, order_id: str, payment_method_id: str) -> str:
    """Pay a pending order in another way; what was paid is refunded."""
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


def modify_order_address(store: Store, order_id: str, **address: str) -> str:
    """Send a pending order elsewhere."""
    _order(store, order_id, "pending", "non-pending order cannot be modified")
    order = store.change("orders", order_id)
    order["address"] = _address(address)
    return json.dumps(order)


def modify_user_address(store: Store, user_id: str, **address: str) -> str:
    """Change a user's default address."""
    if store.read("users", user_id) is None:
        raise ToolRefusal("user not found")
    user = store.change("users", user_id)
    user["address"] = _address(address)
    return json.dumps(user)


def _address(given: Mapping[str, str]) -> dict[str, str]:
    return {part: given[part] for part in ADDRESS}


def return_items(store: Store, order_id: str, item_ids: list[str], payment_method_id: str) -> str:
    """Return items of a delivered order."""
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
