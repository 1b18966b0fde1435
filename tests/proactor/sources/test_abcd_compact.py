"""ABCD's compact file: windows of actions, and what is unknown."""

from __future__ import annotations

import json
from pathlib import Path

from proactor.sources import load

ONTOLOGY = {
    "actions": {
        "interaction": {
            "pull-up-account": ["customer_name", "account_id"],
            "offer-refund": ["amount"],
            "send-link": [],
        },
        "faq_policy": {"search-faq": []},
    },
    "values": {"enumerable": {"customer_name": ["Joyce Wu"]}, "non_enumerable": {}},
}


def test_abcd(tmp_path: Path) -> None:
    texts = [("AGENT", "hi"), ("USER", "I am Joyce Wu"), ("USER", "X12"), ("AGENT", "wait"), ("USER", "ok")]
    record = {
        "dialogue_id": "abcd/1",
        "flow": "account",
        "scenario": {"personal": {"account_id": "x12"}, "order": {}},
        "turns": [{"speaker": s, "text": t} for s, t in texts],
        "actions": [
            {
                "method": "pull-up-account",
                "values": ["x12", "joyce wu"],
                "value_turns": [2, 1],
                "last_visible_turn": 3,
                "window": {"earliest": 2, "latest": 3},
            },
            {
                "method": "offer-refund",
                "values": ["40"],
                "value_turns": [None],
                "window": None,
                "last_visible_turn": 4,
            },
            {"method": "search-faq", "values": [], "value_turns": [], "window": None, "last_visible_turn": 4},
            {
                "method": "send-link",
                "values": [],
                "value_turns": [],
                "window": {"earliest": 3, "latest": 3},
                "last_visible_turn": 3,
            },
        ],
    }
    (tmp_path / "ontology.json").write_text(json.dumps(ONTOLOGY))
    (tmp_path / "abcd_dev.jsonl").write_text(json.dumps(record) + "\n")
    corpus = load("abcd", tmp_path)
    pull, refund, faq, link = corpus.dialogues[0].references
    assert pull.params == {"account_id": "x12", "customer_name": "joyce wu"}
    assert (pull.coverage, pull.ready, pull.values_seen) == (
        (2, 3),
        (3, 3),
        3,
    )  # turn 4 is the agent's: it can not decide there
    assert (refund.params, refund.ready, refund.null_reason) == ({"amount": "40"}, None, "unmatched")
    assert (faq.ready, faq.null_reason, link.null_reason) == (None, "no_values", "no_decision_turn")
    assert corpus.counters["null"] == 3 and corpus.counters["slot_by_shape"] == 1
    assert (
        corpus.catalog["offer-refund"].effect == "irreversible"
        and corpus.catalog["search-faq"].effect == "read"
    )
