"""The episodes of a step: played, drawn again where a group has no spread, and what they were like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from proactor.environments.episode import Episode
from proactor.episode_config import EpisodeGRPO
from proactor.methods.user_metrics import Outcome, metrics
from proactor.training.episodes import Arena
from proactor.training.redraws import Others, redraw
from proactor.training.steps import Row

T = TypeVar("T")
REDRAW_KEYS = 2**25
"""Keys of noise between two rounds of `redraw`: room for 512 edited histories of `MOST_EPISODES` episodes."""
Placed = tuple[int, list[Episode]]
"""(place, group): places order the groups of all ranks, and are the same on any number of ranks."""


def play_step(
    arena: Arena, stage: EpisodeGRPO, step: int, epoch: int, tasks: Sequence[str], others: Sequence[str]
) -> tuple[list[Placed], Row, Counter[str]]:
    """(this rank's groups of ``tasks``, in order; counters of `redraw` over all ranks; this rank's counters).

    Groups without spread are drawn again as ``stage`` says (`training.redraws`), from the same tasks, which
    each rank plays for itself, or from ``others``, which ranks share. The counters are the host's, the user's
    and ``episodes_failed`` of groups that were given up.
    """
    engine, credit, same = arena.engine, arena.credit, stage.redraw == "same"
    rest, events = Others(others, lambda _: 1), Counter[str]()

    def play(tasks: Sequence[str], keys: Sequence[int]) -> list[list[Episode]]:
        groups, counts = arena.play(tasks, n=stage.n, iteration=step, epoch=epoch, keys=keys)
        events.update(counts)
        return groups

    def draw(attempt: int, given_up: Sequence[Placed], wanted: int) -> list[Placed] | None:
        lost = sum(episode.failed for _, group in given_up for episode in group)
        first = attempt * REDRAW_KEYS  # a noise of its own
        if same:
            places = [place for place, _ in given_up]
            drawn = play([group[0].task for _, group in given_up], [first + place for place in places])
        elif taken := rest.take(wanted):
            mine = engine.share(list(enumerate(taken, first)))
            places = [place for place, _ in mine]
            drawn = play([task for _, task in mine], places)
        else:
            return None
        events["episodes_failed"] += lost
        return list(zip(places, drawn, strict=True))

    mine = engine.share(list(enumerate(tasks)))
    keys = [place for place, _ in mine]
    placed = list(zip(keys, play([task for _, task in mine], keys), strict=True))
    if not stage.redraws:
        return placed, {}, events
    kept, again = redraw(
        engine,
        stage.redraws,
        placed,
        lambda group: credit.without_spread(group[1]),
        lambda group: sum(Outcome.of(episode).tokens for episode in group[1]),
        draw,
        in_place=same,
    )
    return sorted(kept, key=lambda group: group[0]), again, events


def episodes_row(arena: Arena, placed: Sequence[Placed]) -> Row:
    """What the episodes of all ranks were like; those whose environment failed count as episodes and endings
    alone.
    """
    success = arena.config.eval.success
    mine = {
        place: [(Outcome.of(e, success=success), e.ending, e.tokens) for e in group]
        for place, group in placed
    }
    everyone = [one for group in in_order(arena.engine.gather(mine, "episodes")) for one in group]
    endings = Counter(ending for _, ending, _ in everyone)
    values = metrics([result for result, _, _ in everyone])
    return {
        **{key: value for key, value in values.items() if key != "tokens"},
        "episodes": float(len(everyone)),
        "tokens_sampled": float(sum(result.tokens for result, _, _ in everyone)),
        "tokens_of_episodes": float(sum(tokens for _, _, tokens in everyone)),
        **{f"ending/{ending}": float(count) for ending, count in sorted(endings.items())},
    }


def first_failure(arena: Arena, placed: Sequence[Placed]) -> str:
    """What the first episode says whose environment failed, on any rank; empty without one."""
    mine = {place: next((e.error for e in group if e.error), "") for place, group in placed}
    return next(filter(None, in_order(arena.engine.gather(mine, "failures"))), "")


def in_order(ranks: Sequence[Mapping[int, T]]) -> list[T]:
    """What all ranks have, by place: a sum over it is the same to the last bit on any number of ranks."""
    everything = {place: value for rank in ranks for place, value in rank.items()}
    return [everything[place] for place in sorted(everything)]
