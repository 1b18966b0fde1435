"""The rates that projections of time assume: operations of products and bytes copied, a second."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from proactor.engine.config import EngineConfig
from proactor.engine.device import choose_device, choose_dtype
from proactor.kernels.ceilings import measure_ceilings


@dataclass(frozen=True, slots=True)
class Rates:
    """``product``: operations a second of large products; ``copy``: bytes a second, each read and written.
    ``source``: where they come from.
    """

    product: float
    copy: float
    source: str


def measure_rates(options: EngineConfig) -> Rates:
    """The rates of the device that ``options`` name, in its dtype.

    Raises EngineError for a device that is not there.
    """
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    found = measure_ceilings(device, dtype)
    name = "this CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return Rates(found.product, found.copy, f"measured on {name}: a product in {str(dtype)[6:]}, a copy")
