"""The page of an agent's log: whatever people, tools and the model wrote stands there as text."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path

from proactor.agent.log import DecisionLog
from proactor.dialogue.agent_log import (
    Act,
    Answered,
    Closed,
    Decided,
    Decision,
    LeftOut,
    Near,
    Opened,
    Refused,
    Said,
    Started,
)
from proactor.report.agent_page import write_agent_report
from tests.proactor.report.test_page import HOSTILE, Page


def hostile_log(file: Path) -> Path:
    """A conversation in which every text is markup."""
    evil = {HOSTILE: HOSTILE}
    act = Act(id=f"1.{HOSTILE}", kind="fire", name=HOSTILE, params=evil, probability=0.9, threshold=0.5)
    near = Near(name=HOSTILE, params=evil, missing=(HOSTILE,), why=HOSTILE)
    decision = Decision(
        conversation=HOSTILE,
        turn=1,
        kind="fire",
        actions=(act,),
        near=(near,),
        reason=HOSTILE,
        answer=HOSTILE,
        budget=1.0,
    )
    log = DecisionLog(file)
    for event in (
        Started(run=HOSTILE, adapter=HOSTILE, version=HOSTILE, thresholds={HOSTILE: 0.5}),
        Opened(conversation=HOSTILE, tools=(HOSTILE,)),
        Said(conversation=HOSTILE, turn=1, speaker="user", text=HOSTILE),
        Decided(conversation=HOSTILE, decision=decision),
        Answered(event="result", conversation=HOSTILE, act=act.id, content={HOSTILE: [HOSTILE]}),
        Answered(event="reject", conversation=HOSTILE, act=act.id),
        LeftOut(conversation=HOSTILE, speaker=HOSTILE, text=HOSTILE),
        Refused(conversation=HOSTILE, error=HOSTILE, given=evil),
        Closed(conversation=HOSTILE),
    ):
        log.write(event)
    return file


def test_markup_anywhere_in_a_log_is_shown_as_text(tmp_path: Path) -> None:
    text = write_agent_report(hostile_log(tmp_path / "decisions.jsonl")).read_text(encoding="utf-8")
    [packed] = re.findall(r'<script[^>]*id="packed"[^>]*>(.*?)</script>', text, re.DOTALL)
    entries = json.loads(zlib.decompress(base64.b64decode(packed)))
    for html in (text, *(entry["html"] for entry in entries)):
        page = Page(html)
        assert "img" not in page.tags
        assert not any(name.startswith("on") for _, name, _ in page.attributes)
        assert page.text.count("<img src=x onerror=alert(2)>") >= 8 and "{{ 7 * 7 }}" in page.text
    assert len(re.findall("<script", text)) == text.count("</script>") <= 3
