"""`AgentError`."""

from __future__ import annotations

from proactor.engine import ProactorError


class AgentError(ProactorError):
    """What an agent at work cannot use. One line that names the conversation, the file or the argument."""
