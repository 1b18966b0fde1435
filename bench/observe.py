"""An agent at work: the latency of a decision, what is computed for it, and many conversations at once.

    python -m bench.observe [RUN] [--conversations 100] [--http] [--results DIR]

First one dialogue of 40 turns, heard turn by turn: median latency, and model rows over tokens read (the
dialogue, the boards, the answers drawn or scored). Then as many such dialogues at once through one engine:
decisions a second, latency at the median and the 99th percentile. Both without thresholds, and with
thresholds that nothing reaches.

With --http as many other conversations come over HTTP, each on a connection of its own to a server in this
process: what a client waits for a decision. Clients and server share the interpreter, so that is an upper
bound of what HTTP costs.

Without RUN (a run's folder) the model has random weights, two layers and a tokenizer of its own: it shows the
cost of everything around the model.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from bench.records import add_results, say, stamp, write_record
from bench.serving import Host
from bench.serving_clients import bytes_of, read
from proactor.agent import Agent, Decision
from proactor.calibration.thresholds import Thresholds
from proactor.catalogs import write_catalog
from proactor.config_base import SmallModel
from proactor.dialogue import Dialogue, Turn
from proactor.event_loop import BackgroundLoop
from proactor.server.agent_routes import agent_router
from proactor.server.limits import Limits
from proactor.sources import load
from proactor.training.small_model import build_model, train_tokenizer

T = TypeVar("T")

TURNS = 40
SIZE = SmallModel(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=128, vocabulary=600, context=4096)
OPTIONS: dict[str, Any] = {"size": 60, "min_turns": 4, "max_turns": 8, "tools": 3}


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print and write the record."""
    parser = argparse.ArgumentParser(description="an agent at work")
    parser.add_argument(
        "run", nargs="?", type=Path, help="a run's folder; default: a model with random weights"
    )
    parser.add_argument("--conversations", type=int, default=100)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--http", action="store_true", help="over HTTP too")
    add_results(parser)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        never = Path(scratch) / "never.json"
        never.write_text(Thresholds().model_dump_json())
        run = options.run or random_run(Path(scratch))
        adapter = "best" if options.run else "none"
        record: dict[str, Any] = {**stamp(), "run": str(options.run or "random weights")}
        for name, chosen in (("greedy", {"greedy": True}), ("thresholds", {"thresholds": never})):
            agent = Agent.load(run, adapter=adapter, log=None, **chosen)
            record[name] = measure(agent, options.conversations, options.turns)
            if options.http:
                record[name] |= measure_http(agent, options.conversations, options.turns)
            say(f"{name}: {record[name]}")
            agent.engine.release()
    write_record(options.results, "observe", record)


def random_run(folder: Path) -> Path:
    """The folder of a run whose model has random weights."""
    corpus = load("synthetic", split="train", limit=24, **OPTIONS)
    tokenizer = train_tokenizer((t.text for d in corpus.dialogues for t in d.turns), SIZE.vocabulary)
    build_model(tokenizer, SIZE).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    run = folder / "run"
    run.mkdir()
    config = {
        "name": "run",
        "model": str(folder / "model"),
        "engine": {"kv_tokens": 262144},
        "prompt": {"instructions": ""},
        "eval": {"max_tokens": 16},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    write_catalog(corpus.catalog, run / "catalog.json")
    return run


def long_dialogue(name: str, turns: int, seed: int) -> Dialogue:
    """A dialogue of ``turns`` turns, of the texts of synthetic ones."""
    texts = [
        turn.text for d in load("synthetic", limit=24, seed=seed, **OPTIONS).dialogues for turn in d.turns
    ]
    spoken = (
        Turn(index=i + 1, speaker="agent" if i % 2 else "user", text=texts[(i + seed) % len(texts)])
        for i in range(turns)
    )
    return Dialogue(id=name, turns=tuple(spoken))


def measure(agent: Agent, conversations: int, turns: int) -> dict[str, float]:
    """Latency, rows over tokens and throughput of one agent."""
    hear_at_once(agent, [long_dialogue("warm", 4, 0)])
    dialogue = long_dialogue("alone", turns, 1)
    before, drawn = agent.engine.counters()["rows_computed"], agent.counters["answer_tokens"]
    decisions, _ = hear_at_once(agent, [dialogue])
    rows = agent.engine.counters()["rows_computed"] - before
    encoder = agent.encoder
    trunk = encoder.trunk(dialogue)
    boards = sum(len(encoder.prompt(dialogue, d.turn)) - trunk.ends[d.turn] for d in decisions)
    said = trunk.ends[decisions[-1].turn] - trunk.ends[0]  # the system message was read by the first dialogue
    read = said + boards + agent.counters["answer_tokens"] - drawn
    many, seconds = hear_at_once(
        agent, [long_dialogue(f"c{i}", turns, i % 8 + 2) for i in range(conversations)]
    )
    latencies = [d.seconds * 1000 for d in many]
    return {
        "turns": turns,
        "median_ms": statistics.median(d.seconds * 1000 for d in decisions),
        "rows_over_tokens_read": rows / read,
        "dropped_turns": agent.counters["dropped_turns"],
        "conversations": conversations,
        "decisions_per_second": len(many) / seconds,
        "at_once_median_ms": statistics.median(latencies),
        "at_once_p99_ms": float(np.percentile(latencies, 99)),
    }


def measure_http(agent: Agent, conversations: int, turns: int) -> dict[str, float]:
    """What clients wait for a decision over HTTP, alone and at once, and the throughput."""
    home = BackgroundLoop("agent")
    with Host(agent.engine, conversations, (agent_router(agent, home, Limits()),)) as host:
        port = host.bound.getsockname()[1]
        hear_over_http(port, [long_dialogue("warm-http", 4, 10)])
        alone, _ = hear_over_http(port, [long_dialogue("alone-http", turns, 11)])
        dialogues = [long_dialogue(f"h{i}", turns, i % 8 + 12) for i in range(conversations)]
        waits, seconds = hear_over_http(port, dialogues)
    home.close()
    return {
        "http_median_ms": statistics.median(alone) * 1000,
        "http_decisions_per_second": len(waits) / seconds,
        "http_at_once_median_ms": statistics.median(waits) * 1000,
        "http_at_once_p99_ms": float(np.percentile(waits, 99)) * 1000,
    }


def hear_at_once(agent: Agent, dialogues: Sequence[Dialogue]) -> tuple[list[Decision], float]:
    """The decisions of all dialogues, heard at once, and the seconds they took."""

    async def hear(dialogue: Dialogue) -> list[Decision]:
        return [
            decision
            for turn in dialogue.turns
            if (decision := await agent.observe_async(dialogue.id, turn)).decided
        ]

    return _at_once(hear, dialogues)


def hear_over_http(port: int, dialogues: Sequence[Dialogue]) -> tuple[list[float], float]:
    """The seconds that each decision of the dialogues was waited for, and those that all took."""

    async def hear(dialogue: Dialogue) -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        waits = []
        for turn in dialogue.turns:
            asked = {"conversation": dialogue.id, "speaker": turn.speaker, "text": turn.text}
            began = time.perf_counter()
            writer.write(bytes_of({"path": "/v1/agent/observe", "body": asked}))
            status, body, _, _ = await read(reader)
            if status != 200:
                raise SystemExit(f"observe: {status} {body.decode()}")
            if Decision.model_validate_json(body).decided:
                waits.append(time.perf_counter() - began)
        writer.close()
        return waits

    return _at_once(hear, dialogues)


def _at_once(
    hear: Callable[[Dialogue], Coroutine[Any, Any, list[T]]], dialogues: Sequence[Dialogue]
) -> tuple[list[T], float]:
    """All that was heard, and the seconds it took."""

    async def every() -> list[list[T]]:
        return await asyncio.gather(*map(hear, dialogues))

    began = time.perf_counter()
    heard = asyncio.run(every())
    return [each for parts in heard for each in parts], time.perf_counter() - began


if __name__ == "__main__":
    main()
