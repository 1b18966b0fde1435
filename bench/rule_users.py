"""How well the users of the gyms do that need no model, and the expert for FunctionGym.

    python -m bench.rule_users --data "$PROACTOR_DATA/userrl" --database tau-bench/tau_bench/envs/retail/data

prints, over 100 tasks: how often the intention user understands questions that ask for one detail, for two or
for none of its task; how far the tau customer carries a desk that does what the task wants; what the expert
solves. Without ``--database`` (tau-bench's retail tables) the customer is left out.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from proactor.environments.gyms.function import FunctionGym, FunctionWorld
from proactor.environments.gyms.function_expert import FunctionExpert
from proactor.environments.gyms.intention import IntentionGym
from proactor.environments.gyms.tau import TauGym, TauWorld
from proactor.environments.gyms.tau_customer import RuleCustomer
from proactor.environments.protocol import Call

Trial = tuple[str, str, bool, str]
"""A task, what was tried, whether it went as it should, and what came instead."""

CHANGES = ("cancel", "modify", "return", "exchange")
"""What the names of tools begin with that change the database."""


def intention_trials(gym: IntentionGym, names: list[str]) -> Iterator[Trial]:
    """Questions to each task's user: for its details, one by one and in pairs; another task's; small talk."""
    for number, name in enumerate(names):
        gym_task, user = gym.task(name), gym.make(name).user
        for place, detail in enumerate(gym_task.details):
            for kind, question in [
                ("its inquiry", detail.inquiry),
                ("its description", f"What about the {detail.description}?"),
            ]:
                asked = user.asked(question)
                yield name, kind, asked == [place], f"{question} -> {asked}, not [{place}]"
        if len(gym_task.details) > 1:
            pair = " ".join(detail.inquiry for detail in gym_task.details[:2])
            yield name, "two inquiries", user.asked(pair) == [0, 1], f"{pair} -> {user.asked(pair)}"
        other = gym.task(names[(number + 1) % len(names)]).details[0].inquiry
        yield name, "another task's", user.asked(other) == [], f"{other} -> {user.asked(other)}"
        weather = "How is the weather today?"
        yield name, "small talk", user.asked(weather) == [], f"{weather} -> {user.asked(weather)}"


def tau_trials(gym: TauGym, names: list[str]) -> Iterator[Trial]:
    """A desk that asks who the customer is and what it wants, and does what the task says."""
    for name in names:
        world = gym.make(name)
        world.reset(0)
        customer = world.customer
        assert isinstance(customer, RuleCustomer), "the gym's default"
        said = _tell(world, "May I have your name and zip code, or your email?")
        yield name, "says who it is", bool(customer.identity) and said == customer.identity, said
        wanted = [customer.opening, *(_tell(world, "What can I do for you?") for _ in customer.requests)]
        actions = [(tool, given) for tool, given in world.task.actions if tool.startswith(CHANGES)]
        orders = [given["order_id"] for _, given in actions if "order_id" in given]
        known = " ".join(wanted)
        yield name, "names its orders", all(order in known for order in orders), known
        for tool, given in actions:
            said = _tell(world, f"I will call {tool} with {json.dumps(given)}. Do you confirm (yes/no)?")
            yield name, "confirms", said.startswith("Yes"), said
            if not world.over:
                world.step(Call("answer", json.dumps({"name": tool, "arguments": given})))
        last = None if world.over else world.step(Call("action", f"All done. {' '.join(world.task.outputs)}"))
        yield name, "ends the conversation", last is not None and last.terminated, str(last)
        yield name, "reward 1", last is not None and last.reward == 1, str(last)


def _tell(world: TauWorld, message: str) -> str:
    return "" if world.over else world.step(Call("action", message)).observation


def expert_trials(gym: FunctionGym, names: list[str]) -> Iterator[Trial]:
    """The expert on FunctionGym's tasks."""
    for name in names:
        world, expert, calls = FunctionWorld(gym.task(name), gym.max_turns, parity=False), FunctionExpert(), 0
        world.reset(0)
        reward, answers = 0.0, 0
        while not world.over and (move := expert.move()) is not None:
            outcome = world.step(move.call)
            expert.see(move.call, outcome.observation)
            reward, calls, answers = outcome.reward, calls + 1, answers + (move.call.verb == "answer")
        rule = gym.task(name).rule
        yield name, "solved", reward == 1, rule
        yield name, "with one answer", reward == 1 and answers == 1, f"{rule}: {answers} answers"
        yield name, "in 4 turns or fewer", reward == 1 and calls <= 4, f"{rule}: {calls} turns"


def report(title: str, trials: Iterator[Trial], most: int) -> None:
    """Print the rates, and the first failures of each kind."""
    tried, right = Counter[str](), Counter[str]()
    failures: dict[str, list[str]] = {}
    for task, kind, fine, instead in trials:
        tried[kind] += 1
        right[kind] += fine
        if not fine:
            failures.setdefault(kind, []).append(f"{task}: {instead}")
    print(title)
    for kind, count in tried.items():
        print(f"  {kind:24} {right[kind]:5} of {count:5}  {right[kind] / count:.3f}")
        for failure in failures.get(kind, [])[:most]:
            print(f"      {failure[:200]}")


def main(argv: list[str] | None = None) -> int:
    """Print all of them."""
    parser = argparse.ArgumentParser(prog="python -m bench.rule_users", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with UserRL's tasks")
    parser.add_argument("--database", type=Path, help="folder with tau-bench's retail tables")
    parser.add_argument("--tasks", type=int, default=100, help="tasks of each gym")
    parser.add_argument("--failures", type=int, default=3, help="failures to print of each kind")
    options = parser.parse_args(argv)
    intention, function = IntentionGym(options.data), FunctionGym(options.data, split="none")
    some = list(intention.tasks("train"))[: options.tasks]
    report(f"intention user, {len(some)} tasks", intention_trials(intention, some), options.failures)
    if options.database:
        tau = TauGym(options.data, options.database)
        some = list(tau.tasks("train"))[: options.tasks]
        report(f"tau customer, {len(some)} tasks", tau_trials(tau, some), options.failures)
    some = list(function.tasks("all"))
    report(f"function expert, {len(some)} tasks", expert_trials(function, some), options.failures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
