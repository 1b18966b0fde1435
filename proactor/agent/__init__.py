"""A trained agent at work: it watches live conversations and says, after each user turn, what to do now."""

from proactor.agent.agent import Agent
from proactor.agent.errors import AgentError
from proactor.dialogue.agent_log import Act, Decision, Near

__all__ = ["Act", "Agent", "AgentError", "Decision", "Near"]
