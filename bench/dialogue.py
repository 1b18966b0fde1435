"""One dialogue, sampled and trained turn by turn, beside TRL.

8 turns with contexts of 450-660 tokens, 8 samples of 32 tokens per turn:

    python -m bench.dialogue --peer trl
"""

from __future__ import annotations

from bench.harness import compare
from bench.workloads import DIALOGUE

if __name__ == "__main__":
    compare(DIALOGUE)
