"""The prompt of all model annotators: templates/annotate.j2.

System, then the whole dialogue, then the question about one turn.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from proactor.annotation.oracle import OracleRequest


@lru_cache(maxsize=1)
def _macros() -> Any:
    environment = ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    return environment.get_template("annotate.j2").module


def parts(request: OracleRequest, brief: bool = False) -> tuple[str, str, str]:
    """(system, dialogue, question) as text; the first two are the same for every turn of a dialogue.

    ``brief``: without instructions.
    """
    macros = _macros()
    dialogue = request.dialogue
    return (
        str(macros.system(request.tools, brief)),
        str(macros.dialogue(dialogue.turns, brief)),
        str(macros.question(dialogue.turns[request.turn - 1], request.complaint, brief)),
    )


def messages(request: OracleRequest, brief: bool = False) -> list[dict[str, str]]:
    """The prompt as two messages.

    Chat templates that require alternating roles accept two, and providers cache their common prefix.
    """
    system, dialogue, question = parts(request, brief)
    return [{"role": "system", "content": system}, {"role": "user", "content": f"{dialogue}\n\n{question}"}]
