"""Model, sampler and trainer in one process, on one copy of the weights.

    from proactor.engine import Engine, GRPO, LoRA, Sampling

    engine = Engine.load("path/or/hub-id", lora=LoRA(rank=8, alpha=16))
    groups = engine.sample(prompts, Sampling(n=8))
    for group in groups:
        group.rewards = [score(s.text) for s in group.samples]
    print(engine.train(groups, GRPO(lr=5e-6)))

This module is the whole public surface: embedders import nothing below it. Importing it changes no global
state; a name's module, and with it torch, is imported when the name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proactor.engine.adapter_io import base_model_of as base_model_of
    from proactor.engine.adapter_io import has_adapter as has_adapter
    from proactor.engine.adapter_io import read_lora as read_lora
    from proactor.engine.chat import ChatFormat as ChatFormat
    from proactor.engine.chat_chunk import ChatCompletionChunk as ChatCompletionChunk
    from proactor.engine.chat_request import ChatRequest as ChatRequest
    from proactor.engine.checkpoint_writer import save_quantized as save_quantized
    from proactor.engine.config import GRPO as GRPO
    from proactor.engine.config import LARGE_GAP as LARGE_GAP
    from proactor.engine.config import SFT as SFT
    from proactor.engine.config import AdamW as AdamW
    from proactor.engine.config import EngineConfig as EngineConfig
    from proactor.engine.config import Overlong as Overlong
    from proactor.engine.config import Sampling as Sampling
    from proactor.engine.constraint import Constraint as Constraint
    from proactor.engine.drawing import Drawing as Drawing
    from proactor.engine.drawing import Piece as Piece
    from proactor.engine.early_gradient import EarlyGradient as EarlyGradient
    from proactor.engine.engine import Engine as Engine
    from proactor.engine.export import export_merged as export_merged
    from proactor.engine.export import export_peft as export_peft
    from proactor.engine.faults import fault_point as fault_point
    from proactor.engine.files import append as append
    from proactor.engine.files import atomic_file as atomic_file
    from proactor.engine.files import atomic_folder as atomic_folder
    from proactor.engine.files import naming as naming
    from proactor.engine.files import open_atomic as open_atomic
    from proactor.engine.files import remove as remove
    from proactor.engine.files import sweep as sweep
    from proactor.engine.frozen import Config as Config
    from proactor.engine.group_plan import GroupPlan as GroupPlan
    from proactor.engine.known_models import known_keys as known_keys
    from proactor.engine.layout import TokenBatch as TokenBatch
    from proactor.engine.lora_config import LoRA as LoRA
    from proactor.engine.loss import GRPOLoss as GRPOLoss
    from proactor.engine.loss import SFTLoss as SFTLoss
    from proactor.engine.openai_client import OpenAIClient as OpenAIClient
    from proactor.engine.openai_desk import RequestTimeout as RequestTimeout
    from proactor.engine.outline import read_outline as read_outline
    from proactor.engine.plan import ModelPlan as ModelPlan
    from proactor.engine.plan import plan_here as plan_here
    from proactor.engine.plan import plan_model as plan_model
    from proactor.engine.profiles import PhaseTime as PhaseTime
    from proactor.engine.profiles import StepProfile as StepProfile
    from proactor.engine.profiles import load_to_profile as load_to_profile
    from proactor.engine.profiles import profile_decode as profile_decode
    from proactor.engine.profiles import profile_kernels as profile_kernels
    from proactor.engine.profiles import profile_step as profile_step
    from proactor.engine.random_checkpoint import make_checkpoint as make_checkpoint
    from proactor.engine.ranges import Time as Time
    from proactor.engine.ranges import Times as Times
    from proactor.engine.ranges import listening as listening
    from proactor.engine.ranges import ranged as ranged
    from proactor.engine.rates import Rates as Rates
    from proactor.engine.rates import measure_rates as measure_rates
    from proactor.engine.reading import LARGEST_FILE as LARGEST_FILE
    from proactor.engine.reading import check_name as check_name
    from proactor.engine.reading import open_regular as open_regular
    from proactor.engine.reading import read_regular as read_regular
    from proactor.engine.response_format import ResponseFormat as ResponseFormat
    from proactor.engine.response_format import format_constraint as format_constraint
    from proactor.engine.sampling_plan import SamplingPlan as SamplingPlan
    from proactor.engine.session import Session as Session
    from proactor.engine.templates import Template as Template
    from proactor.engine.templates import TemplateError as TemplateError
    from proactor.engine.text_stream import TextPieces as TextPieces
    from proactor.engine.text_stream import TokenOffsets as TokenOffsets
    from proactor.engine.tool_calls import Problem as Problem
    from proactor.engine.tool_calls import Reply as Reply
    from proactor.engine.tool_calls import ToolCall as ToolCall
    from proactor.engine.tool_calls import read_reply as read_reply
    from proactor.engine.tool_chat import ToolChat as ToolChat
    from proactor.engine.tool_chat import ToolReport as ToolReport
    from proactor.engine.training import NothingToTrain as NothingToTrain
    from proactor.engine.tree import Tree as Tree
    from proactor.engine.types import EngineError as EngineError
    from proactor.engine.types import Group as Group
    from proactor.engine.types import Sample as Sample
    from proactor.engine.types import Tops as Tops
    from proactor.kernels.ceilings import Ceilings as Ceilings
    from proactor.kernels.errors import ProactorError as ProactorError
    from proactor.kernels.errors import printable as printable
    from proactor.kernels.grpo import Convention as Convention
    from proactor.kernels.grpo import group_advantages as group_advantages

_MODULES = {
    "proactor.engine.adapter_io": (
        "base_model_of",
        "has_adapter",
        "read_lora",
    ),
    "proactor.engine.chat": ("ChatFormat",),
    "proactor.engine.chat_chunk": ("ChatCompletionChunk",),
    "proactor.engine.chat_request": ("ChatRequest",),
    "proactor.engine.checkpoint_writer": ("save_quantized",),
    "proactor.engine.config": (
        "AdamW",
        "EngineConfig",
        "GRPO",
        "LARGE_GAP",
        "Overlong",
        "Sampling",
        "SFT",
    ),
    "proactor.engine.constraint": ("Constraint",),
    "proactor.engine.drawing": (
        "Drawing",
        "Piece",
    ),
    "proactor.engine.early_gradient": ("EarlyGradient",),
    "proactor.engine.engine": ("Engine",),
    "proactor.engine.export": (
        "export_merged",
        "export_peft",
    ),
    "proactor.engine.faults": ("fault_point",),
    "proactor.engine.files": (
        "append",
        "atomic_file",
        "atomic_folder",
        "naming",
        "open_atomic",
        "remove",
        "sweep",
    ),
    "proactor.engine.frozen": ("Config",),
    "proactor.engine.group_plan": ("GroupPlan",),
    "proactor.engine.known_models": ("known_keys",),
    "proactor.engine.layout": ("TokenBatch",),
    "proactor.engine.lora_config": ("LoRA",),
    "proactor.engine.loss": (
        "GRPOLoss",
        "SFTLoss",
    ),
    "proactor.engine.openai_client": ("OpenAIClient",),
    "proactor.engine.openai_desk": ("RequestTimeout",),
    "proactor.engine.outline": ("read_outline",),
    "proactor.engine.plan": (
        "ModelPlan",
        "plan_here",
        "plan_model",
    ),
    "proactor.engine.profiles": (
        "load_to_profile",
        "PhaseTime",
        "profile_decode",
        "profile_kernels",
        "profile_step",
        "StepProfile",
    ),
    "proactor.engine.random_checkpoint": ("make_checkpoint",),
    "proactor.engine.ranges": (
        "listening",
        "ranged",
        "Time",
        "Times",
    ),
    "proactor.engine.rates": (
        "measure_rates",
        "Rates",
    ),
    "proactor.engine.reading": (
        "check_name",
        "LARGEST_FILE",
        "open_regular",
        "read_regular",
    ),
    "proactor.engine.response_format": (
        "format_constraint",
        "ResponseFormat",
    ),
    "proactor.engine.sampling_plan": ("SamplingPlan",),
    "proactor.engine.session": ("Session",),
    "proactor.engine.templates": (
        "Template",
        "TemplateError",
    ),
    "proactor.engine.text_stream": (
        "TextPieces",
        "TokenOffsets",
    ),
    "proactor.engine.tool_calls": (
        "Problem",
        "read_reply",
        "Reply",
        "ToolCall",
    ),
    "proactor.engine.tool_chat": (
        "ToolChat",
        "ToolReport",
    ),
    "proactor.engine.training": ("NothingToTrain",),
    "proactor.engine.tree": ("Tree",),
    "proactor.engine.types": (
        "EngineError",
        "Group",
        "Sample",
        "Tops",
    ),
    "proactor.kernels.ceilings": ("Ceilings",),
    "proactor.kernels.errors": (
        "printable",
        "ProactorError",
    ),
    "proactor.kernels.grpo": (
        "Convention",
        "group_advantages",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
