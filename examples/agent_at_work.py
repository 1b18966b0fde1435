"""From transcripts to an agent at work: 30 conversations in OpenAI's form and a list of tools are annotated,
a small model is trained on them, and the agent watches a new conversation.

python examples/agent_at_work.py [FOLDER]
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

import yaml

from proactor import Agent
from proactor.cli import app

ROOMS = ("kitchen", "bedroom", "studio", "hall")
ASKING = {
    "set_light": ("turn on the light in the {}", "the {} is dark , light please", "light for the {} please"),
    "play_music": ("play some music in the {}", "the {} is quiet , music please", "music for the {} please"),
}
OPENINGS = ("hello", "good evening", "hi there")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"room": {"type": "string", "enum": list(ROOMS)}},
                "required": ["room"],
            },
        },
    }
    for name in ASKING
]
CONFIG = {
    "name": "home",
    "pretrain": {
        "steps": 220,
        "size": {
            "hidden": 64,
            "layers": 2,
            "heads": 2,
            "kv_heads": 1,
            "intermediate": 128,
            "vocabulary": 400,
            "context": 512,
            "batch": 8,
            "copy_tokens": 8,
            "waiting_share": 1.0,
        },
    },
    "prompt": {"instructions": ""},
    "sft": {"max_steps": 4, "eval_every": 4, "batch_dialogues": 8},
    "eval": {"max_tokens": 32, "resamples": 100, "final": False},
}
NEW = ("good evening", "the hall is dark , light please", "thanks , that is all")
"""What the user says in the new conversation."""


def transcripts() -> list[dict[str, object]]:
    """Conversations whose agent acts one turn late: it asks for patience first."""
    cases = [(*case, i) for i, case in enumerate(itertools.product(ASKING, ROOMS, range(3)))] * 2
    fresh = [case for case in cases if ASKING[case[0]][case[2]].format(case[1]) != NEW[1]]
    lines = []
    for number, (tool, room, form, i) in enumerate(fresh[:30]):
        opening = OPENINGS[(i + number) % 3]
        call = {"name": tool, "arguments": json.dumps({"room": room})}
        said = [
            ("user", opening),
            ("assistant", "what can i do ?"),
            ("user", ASKING[tool][form].format(room)),
            ("assistant", "one moment"),
            ("user", "thanks"),
        ]
        messages: list[dict[str, object]] = [{"role": role, "content": text} for role, text in said]
        messages.append({"role": "assistant", "content": "done", "tool_calls": [{"function": call}]})
        lines.append({"id": f"home-{number}", "messages": messages})
    return lines


def main(folder: Path) -> Agent:
    """All steps, in ``folder``; prints what each took."""
    clock = time.perf_counter()

    def took(step: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        print(f"{step}: {now - clock:.1f} s")
        clock = now

    folder.mkdir(parents=True, exist_ok=True)
    lines = transcripts()
    (folder / "transcripts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "tools.json").write_text(json.dumps(TOOLS))
    windows, runs = folder / "windows", folder / "runs"
    data = {
        "source": "jsonl",
        "path": str(windows),
        "train": {"split": None},
        "dev": {"split": None},
        "test": {"split": None},
    }
    config = {**CONFIG, "data": data, "model": str(folder / "model"), "runs": str(runs)}
    (folder / "home.yaml").write_text(yaml.safe_dump(config))

    def proactor(*words: object) -> None:
        app([str(word) for word in words], standalone_mode=False)

    proactor("annotate", folder / "transcripts.jsonl", "--catalog", folder / "tools.json", "--out", windows)
    took(f"annotate {len(lines)} transcripts")
    proactor("train", folder / "home.yaml")
    took("train")
    agent = Agent.load(runs / "home")
    took("load the agent")
    for turn, text in enumerate(NEW, start=1):
        decision = agent.observe("new", text)
        print(f"user: {text}\n  {decision.kind}: {decision.reason}")
        for act in decision.fires:
            print(f"  {act.name}({act.params})")
            agent.result("new", "ok", act=act.id)
        if turn == 1:
            agent.observe("new", {"role": "assistant", "content": "what can i do ?"})
        elif turn == 2:
            agent.observe("new", {"role": "assistant", "content": "one moment"})
    took("a new conversation")
    return agent


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/agent-at-work"))
