"""Every operation's record, in one place for the tests, the compile check and the benchmark."""

from __future__ import annotations

from proactor.kernels.norm import ADD_RMS_NORM, RMS_NORM
from proactor.kernels.op import Op

OPS: tuple[Op, ...] = (RMS_NORM, ADD_RMS_NORM)
