"""Dialogues, and what an agent reads and writes in them: turns, windows, tools, boards, prompts, answers.

The lowest room of the layer: it imports nothing of corpora, rewards or training.
"""

from proactor.dialogue.dialogue import (
    Action,
    Dialogue,
    Interval,
    Reference,
    Speaker,
    Status,
    Turn,
    normalise,
)

__all__ = [
    "Action",
    "Dialogue",
    "Interval",
    "Reference",
    "Speaker",
    "Status",
    "Turn",
    "normalise",
]
