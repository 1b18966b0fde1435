"""`OPS`: the record of every operation, for the tests, the compile check and the benchmark."""

from __future__ import annotations

from proactor.kernels.adamw_records import ADAMW, CLIPPED_ADAMW
from proactor.kernels.advantages import RAGGED_ADVANTAGES
from proactor.kernels.grpo import POLICY_LOSS
from proactor.kernels.kv_write import ROPE_INTO_PAGES
from proactor.kernels.logprob import LOGPROB
from proactor.kernels.logprob_loss import LOGPROB_LOSS
from proactor.kernels.lora_records import LORA_ADD, LORA_LINEAR
from proactor.kernels.nf4_linear import NF4_LINEAR
from proactor.kernels.nf4_records import NF4_DEQUANTIZE, NF4_QUANTIZE
from proactor.kernels.noise import KEYED_UNIFORMS
from proactor.kernels.norm import ADD_RMS_NORM, RMS_NORM
from proactor.kernels.op import Op
from proactor.kernels.paged_records import PAGED_ATTENTION, PAGED_ROWS_ATTENTION, SHARED_PREFIX_ATTENTION
from proactor.kernels.rope import ROPE
from proactor.kernels.sample import SAMPLE
from proactor.kernels.span_attention import SPAN_ATTENTION
from proactor.kernels.swiglu import SWIGLU

OPS: tuple[Op, ...] = (
    NF4_DEQUANTIZE,
    NF4_QUANTIZE,
    NF4_LINEAR,
    LORA_ADD,
    LORA_LINEAR,
    RMS_NORM,
    ADD_RMS_NORM,
    ROPE,
    ROPE_INTO_PAGES,
    SWIGLU,
    RAGGED_ADVANTAGES,
    POLICY_LOSS,
    ADAMW,
    CLIPPED_ADAMW,
    SPAN_ATTENTION,
    PAGED_ATTENTION,
    SHARED_PREFIX_ATTENTION,
    PAGED_ROWS_ATTENTION,
    LOGPROB,
    LOGPROB_LOSS,
    KEYED_UNIFORMS,
    SAMPLE,
)
