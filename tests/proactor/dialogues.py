"""Small dialogues for the scoring tests."""

from __future__ import annotations

from hypothesis import strategies as st

from proactor.dialogue import Action, Dialogue, Reference, Status, Turn


def ready(name: str, **params: str) -> Action:
    return Action(name=name, params=params, status=Status.READY)


def pending(name: str, **params: str) -> Action:
    return Action(name=name, params=params, status=Status.PENDING)


def users(turns: int, *references: Reference, id: str = "d", **fields: object) -> Dialogue:
    """A dialogue of `turns` user turns, so that every turn is a decision point."""
    spoken = tuple(Turn(index=i, speaker="user", text=f"turn {i}") for i in range(1, turns + 1))
    return Dialogue.model_validate({"id": id, "turns": spoken, "references": references, **fields})


def worked_example() -> tuple[Dialogue, dict[int, tuple[Action, ...]]]:
    """The dialogue and predictions of acceptance test T1.1."""
    dialogue = users(
        4,
        Reference(id="A", name="book", params={"dest": "SFO", "date": "Mon"}, coverage=(1, 4), ready=(2, 3)),
        Reference(id="B", name="email", params={"to": "x"}, coverage=(3, 4), ready=(4, 4)),
    )
    full = ready("book", dest="SFO", date="Mon")
    return dialogue, {
        1: (ready("book", dest="SFO"),),
        2: (full, pending("refund")),
        3: (),
        4: (ready("email", to="x"), full),
    }


@st.composite
def scored_dialogues(draw: st.DrawFn) -> tuple[Dialogue, dict[int, tuple[Action, ...]]]:
    """A dialogue with known and unknown windows, and what was proposed at each of its turns."""
    turns = draw(st.integers(1, 6))
    values, names = (
        st.dictionaries(st.sampled_from("xy"), st.sampled_from("12"), max_size=2),
        st.sampled_from("ab"),
    )
    references = []
    for i in range(draw(st.integers(0, 3))):
        o, s, e, c = sorted(draw(st.lists(st.integers(1, turns), min_size=4, max_size=4)))
        known = draw(st.integers(0, 3)) > 0
        references.append(
            Reference(
                id=str(i),
                name=draw(names),
                params=draw(values),
                coverage=(o, c),
                ready=(s, e) if known else None,
            )
        )
    action = st.builds(Action, name=names, params=values, status=st.sampled_from(Status))
    outputs = {u: tuple(draw(st.lists(action, max_size=3))) for u in range(1, turns + 1)}
    return users(turns, *references, id=draw(st.uuids()).hex), outputs
