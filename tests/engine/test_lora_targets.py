"""Adapters on some linears, of several ranks and scales, are those that PEFT makes of the same settings."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import Tensor
from transformers import AutoModelForCausalLM

from proactor.engine import GRPO, Engine, EngineError, Group, GRPOLoss, LoRA, Sample, has_adapter, read_lora
from proactor.engine.footprint import Footprint
from proactor.engine.lora_targets import adapted, module_name
from tests.engine.engines import STEP, adapter, gradient, load, outside, prompts
from tests.engine.peers import engine_gradients, largest_error, padded_logits, peft_gradients, tree_logits
from tests.engine.trees import widened
from tests.tiny import save_tiny, save_tiny_4bit

CASES: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"},
    "two of the attention": {"target_modules": ["v_proj", "q_proj"]},
    "k and up alone": {"target_modules": ["k_proj", "up_proj"]},
    "an expression": {"target_modules": r"model\.layers\.[12]\.(self_attn\.[ov]_proj|mlp\.gate_proj)"},
    "some layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 2]},
    "the last layer": {"target_modules": ["o_proj", "up_proj"], "layers_to_transform": 2},
    "by path": {"target_modules": ["model.layers.1.self_attn.q_proj", "2.mlp.down_proj", "gate_proj"]},
    "excluded": {"target_modules": "all-linear", "exclude_modules": r".*\.1\..*"},
    "ranks": {
        "target_modules": "all-linear",
        "rank_pattern": {
            "mlp.up_proj": 3,
            "q_proj": 2,
            r"self_attn\..*": 7,
        },  # in PEFT's files they are sorted
    },
    "ranks and alphas, stabilised": {
        "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"],
        "rank_pattern": {r"model\.layers\.0\.self_attn\.k_proj": 6},
        "alpha_pattern": {"v_proj": 20, "layers.2.mlp.down_proj": 3},
        "use_rslora": True,
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets") / "model"
    save_tiny(folder, num_hidden_layers=3, hidden_size=32, intermediate_size=48, head_dim=8)
    return folder


def peft_model(base: Path, **options: Any) -> Any:
    """PEFT's model with random adapters, B included."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(3)
    peer = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **options}))
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.15)
    return peer.eval()


def in_peft(peer: Any) -> dict[str, tuple[int, float]]:
    """{module: (rank, scale)} as PEFT made them."""
    return {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in peer.named_modules()
        if hasattr(module, "lora_A") and len(module.lora_A)
    }


def logits(engine: Engine) -> Tensor:
    return torch.cat(tree_logits(engine, [Group(ids, [Sample(ids, [0])]) for ids in prompts(3, shared=4)]))


def peft_logits(peer: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat(padded_logits(peer, prompts(3, shared=4)))


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_of_peft_is_read_trained_and_written(name: str, base: Path, tmp_path: Path) -> None:
    peer = peft_model(base, **CASES[name])
    peer.save_pretrained(tmp_path / "theirs")
    engine = load(base, stir=False, lora=read_lora(tmp_path / "theirs"))
    engine.load_adapter(tmp_path / "theirs")
    assert engine.trainer is not None
    lora = engine.trainer.lora
    ours = {module_name(*place): tuple(pair) for place, pair in lora.modules.items()}
    assert ours == in_peft(peer)
    assert len(lora.flat) == sum(p.numel() for p in peer.parameters() if p.requires_grad)
    expected = peft_logits(peer)
    torch.testing.assert_close(logits(engine), expected, rtol=0, atol=1e-5)
    with peer.disable_adapter():
        assert float((peft_logits(peer) - expected).abs().max()) > 0.05, "the adapter says nothing"

    prompt = prompts(1)[0]
    groups = [Group(prompt, [outside(prompt, [5, 7, i], advantage=i - 0.5) for i in range(2)])]
    engine.forward_backward(groups, GRPOLoss(GRPO()))
    engine.reduce_gradients()
    completions = padded_logits(peer, [[*prompt, 5, 7, i] for i in range(2)])
    loss = torch.zeros(())
    for i, rows in enumerate(completions):  # ratios are 1: their gradient is that of the log-probabilities
        logp = rows[len(prompt) - 1 : -1].log_softmax(-1)[range(3), [5, 7, i]]
        loss = loss - (i - 0.5) * logp.sum() / 6
    assert largest_error(engine_gradients(engine), peft_gradients(peer, loss)) < 1e-4

    engine.step(STEP)
    engine.save_adapter(tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    again = PeftModel.from_pretrained(again, tmp_path / "ours").eval()
    assert in_peft(again) == in_peft(peer)
    torch.testing.assert_close(peft_logits(again), logits(engine), rtol=0, atol=1e-5)
    assert float((peft_logits(again) - expected).abs().max()) > 1e-3, "the step changed nothing"


names = st.sampled_from(
    [
        "q_proj",
        "self_attn.k_proj",
        "mlp.up_proj",
        "1.self_attn.v_proj",
        "model.layers.2.mlp.down_proj",
        "o_proj",
    ]
)
regular = st.sampled_from(
    [
        r".*",
        r".*\.[02]\..*_proj",
        r"model\.layers\.\d\.mlp\.(up|down)_proj",
        r".*q_proj",
        r".*\.self_attn\..*",
    ]
)
patterns = st.lists(
    st.sampled_from(["q_proj", r"layers\.1\..*", "mlp.up_proj", r"^model\.layers\.0\..*", r".*k_proj"]),
    unique=True,
    max_size=3,
)
listed = st.fixed_dictionaries(
    {
        "target_modules": st.lists(names, min_size=1, max_size=4, unique=True),
        "layers_to_transform": st.none() | st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True),
    }
)


@settings(deadline=None, max_examples=150)
@given(
    listed | regular.map(lambda expression: {"target_modules": expression}),
    st.none() | st.lists(names, max_size=2, unique=True) | regular,
    patterns,
    patterns,
)
def test_the_rules_are_those_of_peft(
    target: dict[str, Any], exclude: Any, ranks: list[str], alphas: list[str]
) -> None:
    rank_pattern = {key: 2 + i for i, key in enumerate(ranks)}
    alpha_pattern = {key: 10.0 + i for i, key in enumerate(alphas)}
    theirs = SimpleNamespace(**target, exclude_modules=exclude, layers_pattern=None)
    expected = {}
    for layer in range(3):
        for module in (
            *(f"self_attn.{leaf}_proj" for leaf in "qkvo"),
            *(f"mlp.{leaf}_proj" for leaf in ("gate", "up", "down")),
        ):
            key = f"model.layers.{layer}.{module}"
            found = check_target_module_exists(theirs, key)
            if found and not isinstance(found, _ExcludedModule):
                rank = rank_pattern.get(get_pattern_key(rank_pattern, key), 4)
                expected[key] = rank, alpha_pattern.get(get_pattern_key(alpha_pattern, key), 8.0) / rank
    options = {"rank": 4, "alpha": 8, "rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}
    given = LoRA(
        targets=target["target_modules"],
        layers_to_transform=target.get("layers_to_transform"),
        exclude_modules=exclude or (),
        **options,
    )
    try:
        ours = {module_name(*place): tuple(pair) for place, pair in adapted(given, 3).items()}
    except EngineError as refusal:  # PEFT too has no use for an empty adapter, nor for a key without effect
        message = str(refusal)
        unused = any(f"{key!r} fits none" in message for key in (*ranks, *alphas))
        assert unused or not expected, message
        return
    assert ours == expected


def test_names_have_one_form() -> None:
    forms: list[Any] = [["v", "q"], ("q_proj", "v_proj"), ["self_attn.v_proj", "q"], {"q", "v_proj"}]
    assert {LoRA(targets=form).targets for form in forms} == {("q", "v")}
    assert LoRA(targets="all-linear") == LoRA()
    assert LoRA(layers_to_transform=2).layers_to_transform == (2,)
    assert LoRA(layers_to_transform=[]).layers_to_transform is None
    assert LoRA(rank_pattern={"q": 2}).rank_pattern == {"q_proj": 2}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"targets": ["q_proj", "lm_head"]}, "targets: 'lm_head' is none of the linears"),
        ({"targets": [["q_proj"]]}, "targets"),
        ({"targets": ["proj"]}, "targets: 'proj' is none of the linears"),
        ({"targets": "(q"}, r"targets: '\(q' is no regular expression"),
        ({"targets": []}, "targets: at least one target"),
        ({"targets": ".*q_proj", "layers_to_transform": [0]}, "layers_to_transform goes with a list"),
        ({"layers_to_transform": [-1]}, "layers_to_transform.0=-1"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj=0"),
        ({"rank_pattern": {"q_proj": True}}, "rank_pattern: q_proj: should be a number, not True"),
        ({"alpha_pattern": {"(": 1.0}}, r"alpha_pattern: '\(' is no regular expression"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"bias": "all"}, "bias is not supported"),
        ({"target_modules": ["q_proj"]}, "did you mean 'targets'"),
    ],
)
def test_settings_that_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        LoRA(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"targets": "q_proj"}, r"lora.targets: 'q_proj' fits none of the linears of this model's 3 layers"),
        ({"targets": ["q", "7.mlp.up_proj"]}, "lora.targets: '7.mlp.up_proj' fits none"),
        ({"layers_to_transform": [1, 3]}, "lora.layers_to_transform: 3 fits none"),
        ({"targets": ["q"], "rank_pattern": {"k_proj": 2}}, "lora.rank_pattern: 'k_proj' fits none"),
        ({"targets": ["q"], "alpha_pattern": {"k_proj": 2}}, "lora.alpha_pattern: 'k_proj' fits none"),
        ({"exclude_modules": "nothing"}, "lora.exclude_modules: 'nothing' fits none"),
        ({"rank_pattern": {"p_proj": 2}}, "lora.rank_pattern: 'p_proj' fits none"),  # whole parts of a name
        ({"targets": ["q"], "exclude_modules": ["q"]}, "every linear that targets names is excluded"),
        ({"rank_pattern": {"q_proj": 10**6}}, "lora.rank=1000000: above 48"),
    ],
)
def test_settings_that_do_not_fit_the_model(base: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Engine.load(base, lora=LoRA(**values))


def test_the_files_of_such_an_adapter_are_checked(base: Path, tmp_path: Path) -> None:
    peft_model(base, **CASES["ranks"]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    engine = load(base, stir=False, lora=read_lora(tmp_path))
    before = adapter(engine)
    for change, message in (
        ({"rank_pattern": {}}, r"model\.layers\.0\.self_attn\.q_proj: A \[2, 32\] and B .* not of rank 4"),
        ({"layers_to_transform": [0, 1]}, r"layers\.2\.self_attn\.q_proj: not among the target_modules"),
        (
            {"alpha_pattern": {"o_proj": 9}},
            r"layers\.0\.self_attn\.o_proj has rank 7 and scale 1\.28571, .* 0\.857143",
        ),
        ({"alpha_pattern": {"o_prj": 9}}, r"adapter_config\.json: alpha_pattern: 'o_prj' fits none"),
        ({"layers_pattern": "h"}, r"adapter_config\.json: layers_pattern: 'h' is not supported"),
        ({"target_modules": ["lm_head"]}, r"adapter_config\.json: target_modules: 'lm_head' is none"),
        ({"target_modules": "("}, r"adapter_config\.json: target_modules: '\(' is no regular"),
        ({"target_modules": 3}, r"adapter_config\.json: target_modules"),
        ({"rank_pattern": {"q_proj": 2.5}}, r"adapter_config\.json: rank_pattern"),
    ):
        file.write_text(json.dumps(config | change))
        with pytest.raises(EngineError, match=message) as caught:
            engine.load_adapter(tmp_path)
        assert "\n" not in str(caught.value) and torch.equal(adapter(engine), before)
    some = load(base, stir=False, lora=LoRA(rank=4, alpha=6, targets=["q"], layers_to_transform=[0]))
    some.save_adapter(tmp_path / "some")
    file = tmp_path / "some" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"layers_to_transform": [0, 1]}))
    with pytest.raises(EngineError, match=r"layers\.1\.self_attn\.q_proj: missing, though adapter_config"):
        load(base, stir=False, lora=read_lora(tmp_path / "some")).load_adapter(tmp_path / "some")
    with pytest.raises(EngineError, match=r"q_proj is not among this engine's targets up in layers 2"):
        some.save_adapter(tmp_path / "again")
        load(base, lora=LoRA(rank=4, alpha=6, targets=["up"], layers_to_transform=[2])).load_adapter(
            tmp_path / "again"
        )


FEW = [
    LoRA(rank=4, targets=["o"], layers_to_transform=[2]),
    LoRA(rank=4, targets=["k", "down"], layers_to_transform=[1], rank_pattern={"down": 2}),
    LoRA(rank=4, rank_pattern={"q": 2, "up": 3}, alpha_pattern={"v": 40}),
]


@pytest.mark.parametrize("lora", FEW, ids=["o of the last layer", "one layer", "mixed"])
def test_recomputed_by_turns_they_have_the_gradient_of_one_pass(base: Path, lora: LoRA) -> None:
    trunk = prompts(1, length=24)[0]
    groups = [
        Group(
            trunk[:end],
            [outside(trunk[:end], [5 + end, 7, j], advantage=j - 0.5) for j in range(2)],
            tree="one",
        )
        for end in (3, 9, 16, 24)
    ]
    found = []
    for rows in (1024, 7):
        engine = load(base, lora=lora, chunk_rows=rows)
        widened(engine)
        engine.forward_backward(groups, GRPOLoss(GRPO(beta=0.1)))
        found.append(gradient(engine))
    assert float(found[0].abs().max()) > 1e-3
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("resident", ["nf4", "dense"])
def test_on_a_4bit_base(tmp_path: Path, resident: Any) -> None:
    save_tiny_4bit(tmp_path / "model", dtype=torch.float32)
    peer = peft_model(
        tmp_path / "model-plain", target_modules=["q_proj", "up_proj"], rank_pattern={"q_proj": 2}
    )
    peer.save_pretrained(tmp_path / "adapter")
    lora = read_lora(tmp_path / "adapter")
    engine = load(tmp_path / "model", stir=False, lora=lora, resident=resident)
    engine.load_adapter(tmp_path / "adapter")
    plain = load(tmp_path / "model-plain", stir=False, lora=lora, quantization="nf4", resident="dense")
    plain.load_adapter(tmp_path / "adapter")
    torch.testing.assert_close(logits(engine), logits(plain), rtol=0, atol=1e-5)
    expected = Footprint.of(engine.config, lora, True, torch.float32)
    held = engine.memory()
    assert (held["adapter"], held["optimizer"]) == (expected.adapter, expected.optimizer)
    assert held["adapter"] == 8 * sum(p.numel() for p in peer.parameters() if p.requires_grad)


def test_deterministic_results_do_not_depend_on_the_batch(base: Path) -> None:
    engine = load(base, lora=FEW[2], deterministic=True)
    ids = prompts(5, shared=3)
    together, alone = engine.logprobs(ids), [engine.logprobs([one])[0] for one in ids]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    size = {(2 + 4 + 4, 32), (32, 2), (16, 4), (4, 32), (32, 4), (4 + 3, 32), (48, 4), (48, 3), (4, 48)}
    stacked = {(64, 32), (32, 32), (96, 32), (32, 48), (101, 32)}
    assert engine.decoder.linear_shapes() == size | stacked


def test_a_state_goes_to_an_adapter_of_the_same_linears_alone(base: Path, tmp_path: Path) -> None:
    first = LoRA(rank=4, alpha=8, targets=["q", "o"], layers_to_transform=[1])
    engine = load(base, lora=first)
    engine.save(tmp_path / "state")
    other = load(base, stir=False, lora=LoRA(rank=4, alpha=8, targets=r".*\.1\.self_attn\.[qo]_proj"))
    other.resume(tmp_path / "state")
    assert torch.equal(adapter(other), adapter(engine)), "the same linears, named in another way"
    for lora, message in (
        (
            LoRA(rank=4, alpha=8, targets=["q", "o"], layers_to_transform=[2]),
            r"layers\.1\..*in this engine no adapter",
        ),
        (LoRA(rank=4, alpha=8, targets=["q", "o"]), r"layers\.0\.self_attn\.\w_proj has no adapter"),
        (
            LoRA(rank=4, alpha=8, targets=["q", "o"], layers_to_transform=[1], alpha_pattern={"o": 4}),
            r"o_proj has .*, in this engine \(rank, scale\) \[4, 1\.0\]",
        ),
    ):
        mismatched = load(base, stir=False, lora=lora)
        with pytest.raises(EngineError, match=message):
            mismatched.resume(tmp_path / "state")
        assert has_adapter(tmp_path) is False
