"""``proactor run`` and ``shadow``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proactor.commands.common import UsageError, console, terminal

if TYPE_CHECKING:
    from proactor.agent import Agent, Decision
    from proactor.agent.shadow import Shadowed

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder", show_default=False)]
Adapter = Annotated[str, typer.Option(help="start, best, last, none, or a folder with an adapter")]
Greedy = Annotated[bool, typer.Option("--greedy", help="the model's own answers, without thresholds")]
ThresholdFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="thresholds; default: the run's thresholds.json")
]
Tools = Annotated[
    str | None, typer.Option(help="your tools: refused unless the run was trained with the same ones")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="of the run's config, e.g. engine.kv_tokens=65536"),
]

HELP = """\
Type what the user says. agent: … is a turn of the agent's; /yes and /no answer what it asks; /done [RESULT]
and /failed [RESULT] tell how its action went; /quit ends."""


def run(
    folder: RunFolder,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="turns as JSON lines on standard input, decisions on output")
    ] = False,
    chat: Annotated[bool, typer.Option("--chat", help="type a conversation (the default)")] = False,
    adapter: Adapter = "best",
    thresholds: ThresholdFile = None,
    greedy: Greedy = False,
    tools: Tools = None,
    log: Annotated[
        str, typer.Option(help="file for turns and decisions, in the run's folder; empty: none")
    ] = "decisions.jsonl",
    override: Overrides = None,
) -> None:
    """Let a trained agent watch a conversation: after each user turn it waits, asks, or fires a tool.

    A line of --stdin is {"conversation": …, "speaker": …, "text": …}, or an answer to an action:
    {"conversation": …, "confirm": ID}, "reject", or "result" with "content" and "ok". A line that cannot be
    used is answered with {"error": …}, and the next one is read.
    """
    if stdin and chat:
        raise UsageError("--stdin and --chat: one of them")
    agent = _load(folder, adapter, thresholds, greedy, tools, log or None, override)
    if stdin:
        _serve_lines(agent)
    else:
        _chat(agent)


def shadow(
    folder: RunFolder,
    log: Annotated[
        str,
        typer.Argument(
            metavar="LOG", help="dialogues with actions: windows, transcripts, or a corpus (--path)"
        ),
    ],
    path: Annotated[Path | None, typer.Option(help="folder or file of a corpus")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="at most this many dialogues")] = None,
    adapter: Adapter = "best",
    thresholds: ThresholdFile = None,
    greedy: Greedy = False,
    override: Overrides = None,
    resamples: Annotated[int, typer.Option(min=100, help="bootstrap resamples")] = 2000,
) -> None:
    """Run a trained agent beside logged humans: turns saved, wrong fires, and where the two differ.

    Writes shadow-LOG.json and the decisions, shadow-LOG.jsonl, into the run's folder.
    """
    from proactor.agent import AgentError
    from proactor.agent.shadow import shadow as play
    from proactor.catalogs.proactor import NAME
    from proactor.engine import atomic_file, remove
    from proactor.sources import NAMES, load

    if not (folder / "config.yaml").is_file():
        raise AgentError(f"{folder}: no run (no config.yaml there; `proactor train` makes one)")
    if path is not None and log not in NAMES:
        raise UsageError(f"--path goes with the name of a corpus ({', '.join(NAMES)}), not with {log}")
    if path is not None:
        dialogues = load(log, path, limit=limit).dialogues
    else:
        beside = (Path(log) if Path(log).is_dir() else Path(log).parent) / NAME
        options: dict[str, Any] = {} if beside.is_file() else {"catalog": str(folder / NAME)}
        dialogues = load("jsonl", log, limit=limit, **options).dialogues
    name = f"shadow-{log if path is not None else Path(log).resolve().name.split('.')[0]}"
    decisions = folder / f"{name}.jsonl"
    remove(decisions)
    agent = _load(folder, adapter, thresholds, greedy, None, decisions.name, override)
    with terminal() as ui:
        found = play(agent, dialogues, resamples=resamples, ui=ui)
    atomic_file(folder / f"{name}.json", (found.model_dump_json(indent=1) + "\n").encode())
    _print_shadow(found)
    console.print(
        f"{folder / name}.json\n{decisions}: proactor report {decisions}", markup=False, soft_wrap=True
    )


def _load(
    folder: Path,
    adapter: str,
    thresholds: Path | None,
    greedy: bool,
    tools: str | None,
    log: str | None,
    overrides: list[str] | None,
) -> Agent:
    from proactor.agent import Agent

    with terminal() as ui:
        return Agent.load(
            folder,
            adapter=adapter,
            thresholds=thresholds,
            greedy=greedy,
            tools=tools,
            log=log,
            overrides=tuple(overrides or ()),
            ui=ui,
        )


# -- lines ---


def _serve_lines(agent: Agent) -> None:
    from proactor.engine import ProactorError

    for number, line in enumerate(sys.stdin.buffer, start=1):  # bytes: its encoding is ours to check
        if not line.strip():
            continue
        try:
            answer = take_line(agent, line, f"line {number}")
        except ProactorError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer, ensure_ascii=False), flush=True)


def take_line(agent: Agent, line: bytes, where: str) -> dict[str, Any]:
    """What a line of ``--stdin`` is answered with. Raises ProactorError, one line, for one that is no use."""
    from proactor.agent import AgentError
    from proactor.files import parse_json

    given = parse_json(line, Path(where))
    if not isinstance(given, dict) or not isinstance(given.get("conversation"), str):
        raise AgentError(f"{where}: not an object with a conversation")
    name = given["conversation"]
    if "confirm" in given:
        return agent.confirm(name, given["confirm"]).model_dump(mode="json")
    if "reject" in given:
        agent.reject(name, given["reject"])
        return {"conversation": name, "rejected": given["reject"]}
    if "result" in given:
        agent.result(name, given.get("content"), act=given["result"], ok=bool(given.get("ok", True)))
        return {"conversation": name, "result": given["result"]}
    turn = {key: value for key, value in given.items() if key != "conversation"}
    return agent.observe(name, turn).model_dump(mode="json")


# -- a conversation in a terminal ---


def _chat(agent: Agent) -> None:
    from proactor.agent import AgentError

    console.print(HELP, style="dim", markup=False)
    for line in _typed():
        try:
            decision = _said(agent, line)
        except AgentError as error:
            console.print(str(error), style="red", markup=False)
            continue
        if decision is not None and decision.decided:
            _print_decision(decision)


def _typed() -> Iterator[str]:
    while True:
        try:
            line = console.input("[bold]user[/] ").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line:
            yield line


def _said(agent: Agent, line: str) -> Decision | None:
    name = "chat"
    word, _, rest = line.partition(" ")
    answers: dict[str, Callable[[], Decision | None]] = {
        "/yes": lambda: agent.confirm(name),
        "/no": lambda: agent.reject(name),
        "/done": lambda: agent.result(name, rest or None),
        "/failed": lambda: agent.result(name, rest or None, ok=False),
    }
    if word in answers:
        return answers[word]()
    speaker, colon, text = line.partition(":")
    if colon and speaker.casefold() == "agent":
        return agent.observe(name, {"speaker": "agent", "text": text})
    return agent.observe(name, line)


def _print_decision(decision: Decision) -> None:
    for act in decision.actions:
        values = ", ".join(f"{key}={value}" for key, value in act.params.items())
        word, style = ("fire", "bold green") if act.kind == "fire" else ("ask", "bold yellow")
        console.print(f"  {word} {act.name}({values})", style=style, markup=False)
    if not decision.actions:
        console.print("  wait", style="bold", markup=False)
    dropped = f"; {decision.dropped} turns no longer read" if decision.dropped else ""
    console.print(
        f"  {decision.reason}{dropped}; {decision.seconds * 1000:.0f} ms", style="dim", markup=False
    )


# -- beside humans ---


def _print_shadow(found: Shadowed, most: int = 20) -> None:
    from proactor.calibration.tradeoff import trade_off_table
    from proactor.tables import Column, FittedTable

    console.print(trade_off_table(found.figures))
    counts = ", ".join(f"{count} {what}" for what, count in found.counts.items()) or "no fires"
    how = "by thresholds" if found.calibrated else "without thresholds"
    windows = "" if found.windows == "given" else ", windows from the log"
    console.print(f"{how}{windows}; {found.asks} asks; {counts}", markup=False)
    differing = [d for d in found.found if d.what not in ("earlier", "same turn")]
    if not differing:
        return
    rows = FittedTable(
        f"where they differ ({min(most, len(differing))} of {len(differing)})",
        [Column(name, name=True) for name in ("dialogue", "turn", "what", "tool", "agent", "human")],
    )
    for d in differing[:most]:
        human = "" if d.human is None else f"turn {d.human}: "
        values = (_values(d.params), human + _values(d.wanted))
        rows.add_row(*map(_escape, (d.dialogue, str(d.turn or "–"), d.what, d.name, *values)))
    console.print(rows)


def _values(params: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in params.items())


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
