"""Model, sampler and trainer in one process, on one copy of the weights."""

from __future__ import annotations
