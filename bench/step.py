"""One GRPO step (sample, score, update) beside TRL: 8 prompts of 4-40 tokens, 8 samples of 64 tokens each.

python -m bench.step --peer trl --workload short
"""

from __future__ import annotations

from bench.harness import compare
from bench.workloads import SHORT

if __name__ == "__main__":
    compare(SHORT)
