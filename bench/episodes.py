"""Training in an environment of several turns, beside TRL's ``environment_factory``.

8 tasks of `bench.probes` x 8 episodes of 6 turns. Prompts of 111 tokens, replies of 24, 14 between two
replies:

    python -m bench.episodes --peer trl
"""

from __future__ import annotations

from bench.harness import compare
from bench.probes import chat_tokenizer
from bench.workloads import EPISODES

if __name__ == "__main__":
    compare(EPISODES, tokenizer=chat_tokenizer())
