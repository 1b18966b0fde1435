"""A small shop of our own in the form of tau-bench's tables, and tasks for it in UserRL's form."""

from __future__ import annotations

from typing import Any


def _address(number: int, code: str) -> dict[str, str]:
    return {
        "address1": f"{number} Elm Street",
        "address2": "",
        "city": "Oslo",
        "country": "USA",
        "state": "NY",
        "zip": code,
    }


def _variant(item: str, price: float, available: bool = True, **options: str) -> dict[str, Any]:
    return {"item_id": item, "options": options, "available": available, "price": price}


PRODUCTS = {
    "501": {
        "name": "Mug",
        "product_id": "501",
        "variants": {
            "11": _variant("11", 10.5, color="red"),
            "12": _variant("12", 14.25, color="blue"),
            "13": _variant("13", 9.99, color="green"),
            "14": _variant("14", 8.0, available=False, color="grey"),
        },
    },
    "502": {
        "name": "Lamp",
        "product_id": "502",
        "variants": {
            "21": _variant("21", 40.0, power="battery"),
            "22": _variant("22", 95.5, power="USB"),
        },
    },
}

USERS = {
    "ada_moe_1001": {
        "name": {"first_name": "Ada", "last_name": "Moe"},
        "address": _address(1, "10001"),
        "email": "ada.moe1@example.com",
        "payment_methods": {
            "credit_card_1": {
                "source": "credit_card",
                "brand": "visa",
                "last_four": "1111",
                "id": "credit_card_1",
            },
            "gift_card_2": {"source": "gift_card", "balance": 30.0, "id": "gift_card_2"},
        },
        "orders": ["#W1", "#W2", "#W3", "#W4"],
    },
    "bo_lie_1002": {
        "name": {"first_name": "Bo", "last_name": "Lie"},
        "address": _address(2, "10002"),
        "email": "bo.lie2@example.com",
        "payment_methods": {"paypal_3": {"source": "paypal", "id": "paypal_3"}},
        "orders": ["#W5"],
    },
}


def _item(product: str, item: str) -> dict[str, Any]:
    variant = PRODUCTS[product]["variants"][item]
    return {
        "name": PRODUCTS[product]["name"],
        "product_id": product,
        "item_id": item,
        "price": variant["price"],
        "options": dict(variant["options"]),
    }


def _order(name: str, user: str, status: str, paid_with: str, *items: tuple[str, str]) -> dict[str, Any]:
    bought = [_item(*item) for item in items]
    paid = {
        "transaction_type": "payment",
        "amount": sum(item["price"] for item in bought),
        "payment_method_id": paid_with,
    }
    return {
        "order_id": name,
        "user_id": user,
        "address": USERS[user]["address"],
        "items": bought,
        "fulfillments": [],
        "status": status,
        "payment_history": [paid],
    }


ORDERS = {
    "#W1": _order("#W1", "ada_moe_1001", "pending", "gift_card_2", ("501", "11"), ("501", "11")),
    "#W2": _order("#W2", "ada_moe_1001", "pending", "credit_card_1", ("502", "22")),
    "#W3": _order("#W3", "ada_moe_1001", "delivered", "credit_card_1", ("501", "12"), ("502", "21")),
    "#W4": _order("#W4", "ada_moe_1001", "processed", "credit_card_1", ("501", "13")),
    "#W5": _order("#W5", "bo_lie_1002", "delivered", "paypal_3", ("502", "21")),
}

TABLES = {"orders": ORDERS, "products": PRODUCTS, "users": USERS}


def _task(
    number: int, instruction: str, *actions: tuple[str, dict], outputs: list[str] | None = None
) -> dict:
    return {
        "id": f"retail-train-{number:03d}",
        "obs": "Hello, I need some help with an order.",
        "info": {
            "task": {
                "user_id": "ada_moe_1001",
                "actions": [{"name": name, "kwargs": arguments} for name, arguments in actions],
                "instruction": instruction,
                "outputs": outputs or [],
            },
            "source": "user",
        },
    }


ADA = "Your name is Ada Moe and your zip code is 10001. You are calm, happy. "
TASKS = [
    _task(
        0,
        f"{ADA}Cancel order #W1 because no longer needed. ",
        ("cancel_pending_order", {"order_id": "#W1", "reason": "no longer needed"}),
    ),
    _task(
        1,
        f"{ADA}For #W1, modify Mug {{'color': 'red'}} to {{'color': 'blue'}}; via gift_card_2. "
        "Return #W3 via gift_card_2: Lamp; ",
        (
            "modify_pending_order_items",
            {
                "order_id": "#W1",
                "item_ids": ["11"],
                "new_item_ids": ["12"],
                "payment_method_id": "gift_card_2",
            },
        ),
        (
            "return_delivered_order_items",
            {"order_id": "#W3", "item_ids": ["21"], "payment_method_id": "gift_card_2"},
        ),
    ),
    _task(
        2,
        "You are bo_lie_1002 (bo.lie2@example.com). You want to know how many kinds of mugs there are. "
        "You also want to exchange your lamp to one with USB. If the agent is slow, be angry.",
        ("find_user_id_by_email", {"email": "bo.lie2@example.com"}),
        (
            "exchange_delivered_order_items",
            {
                "order_id": "#W5",
                "item_ids": ["21"],
                "new_item_ids": ["22"],
                "payment_method_id": "paypal_3",
            },
        ),
        outputs=["4"],
    ),
    _task(
        3,
        f"{ADA}For #W1, change payment to credit_card_1. For #W2, change address to 9 Elm Street. ",
        ("modify_pending_order_payment", {"order_id": "#W1", "payment_method_id": "credit_card_1"}),
        ("modify_pending_order_address", {"order_id": "#W2", **_address(9, "10009")}),
        ("modify_user_address", {"user_id": "ada_moe_1001", **_address(9, "10009")}),
    ),
]
