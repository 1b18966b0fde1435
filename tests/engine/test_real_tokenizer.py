"""A dialogue in Qwen2.5's tokenizer and template: rendered, sampled, trained; no text encoded twice.

The model is random, two layers of 32, with the real vocabulary (151,936; the tokenizer has 151,665).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from proactor.dialogue import Dialogue
from proactor.dialogue.prompt import PromptEncoder
from proactor.engine import GRPO, AdamW, Engine, Group, GRPOLoss, LoRA, Sample, Sampling, TokenBatch
from proactor.engine.text import TextCodec
from proactor.engine.tree import Tree
from proactor.sources import load as load_corpus
from tests.tiny import save_tiny

VOCABULARY = 151_936
SAMPLING = Sampling(n=3, max_tokens=6, seed=11, temperature=0.9, top_p=0.98)


@pytest.fixture(scope="module")
def model_folder(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = data_dir / "qwen2.5-tokenizer"
    if not (source / "tokenizer.json").is_file():
        pytest.skip(f"no Qwen2.5 tokenizer: {source} does not exist")
    folder = tmp_path_factory.mktemp("qwen") / "model"
    save_tiny(
        folder,
        hidden_size=32,
        intermediate_size=32,
        head_dim=8,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        eos_token_id=151645,
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(source / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Engine:
    return Engine.load(model_folder, lora=LoRA(rank=2, alpha=4), kv_tokens=8192)


@pytest.fixture(scope="module")
def encoded(engine: Engine) -> tuple[PromptEncoder, Dialogue]:
    corpus = load_corpus("synthetic", limit=8, seed=3)
    assert engine.chat is not None
    dialogue = max(corpus.dialogues, key=lambda d: len(d.decision_turns))
    return PromptEncoder(engine.chat, corpus.catalog), dialogue


def no_encoding(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    """From here on, whoever turns text into ids fails."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("text was encoded")

    for name in ("__call__", "encode", "_encode_plus", "apply_chat_template", "convert_tokens_to_ids"):
        monkeypatch.setattr(type(tokenizer), name, refuse)
    for name in ("markup", "plain"):
        monkeypatch.setattr(TextCodec, name, refuse)


def test_prompts_are_the_template_rendered_once(
    engine: Engine, encoded: tuple[PromptEncoder, Dialogue]
) -> None:
    """Message by message, the ids are the whole rendering's; each decision's trunk begins the next one's."""
    encoder, dialogue = encoded
    assert encoder.shared
    prompts = encoder.prompts(dialogue)
    trunk = encoder.trunk(dialogue)
    assert len(prompts) >= 3
    for turn, ids in prompts:
        assert ids[: trunk.ends[turn]] == trunk.ids[: trunk.ends[turn]]
        text = engine.tokenizer.decode(ids)
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n") and text.startswith(
            "<|im_start|>system\n"
        )
        assert text.count("<|im_start|>") == turn + 3  # system, board, the answer to come
        assert engine.tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    tree = Tree([Group(ids, [Sample(ids, [1])]) for _, ids in prompts])
    boards = sum(len(ids) - trunk.ends[turn] for turn, ids in prompts)
    assert tree.rows <= trunk.ends[prompts[-1][0]] + boards


def test_sampled_and_trained_without_encoding_again(
    engine: Engine, encoded: tuple[PromptEncoder, Dialogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, dialogue = encoded
    prompts = encoder.prompts(dialogue)
    with monkeypatch.context() as patch:
        no_encoding(patch, engine.tokenizer)
        groups = engine.sample([ids for _, ids in prompts], SAMPLING)
        seen: list[TokenBatch] = []

        class Watched(GRPOLoss):
            def __call__(self, logprobs: Tensor, batch: TokenBatch) -> Any:
                seen.append(batch)
                return super().__call__(logprobs, batch)

        for group in groups:
            group.tree = dialogue.id
            for i, sample in enumerate(group.samples):
                sample.advantage = i - 1.0
        stats = engine.forward_backward(groups, Watched(GRPO()))
        engine.step(AdamW(lr=1e-3))
    samples = [s for g in groups for s in g.samples]
    trained = {id(s): [] for s in samples}
    for batch in seen:
        for target, index in zip(batch.target.tolist(), batch.sample.tolist(), strict=True):
            trained[id(batch.samples[index])].append(target)
    assert all(trained[id(s)] == s.token_ids for s in samples)
    assert [g.prompt_ids for g in groups] == [ids for _, ids in prompts]
    assert stats["ratio_max_error"] < 1e-5 and stats["flat"] > 3 * stats["rows"]
    assert max(max(s.token_ids) for s in samples) < len(engine.tokenizer) < VOCABULARY
    again = [engine.tokenizer(s.text, add_special_tokens=False)["input_ids"] for s in samples]
    assert any(ids != s.token_ids for ids, s in zip(again, samples, strict=True)), (
        "encoding again would have shown"
    )


def test_the_next_turn_extends_the_ids(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation that the agent leads itself: what it sampled stands in the next prompt as sampled, and
    shares its rows.
    """
    chat = engine.chat
    assert chat is not None
    first = chat.encode([{"role": "user", "content": "Is Friday free? "}], add_generation_prompt=True)
    follow = chat.encode_message({"role": "user", "content": "And the dentist?"})
    close = [*chat.end_ids, *chat.tail_ids]
    with monkeypatch.context() as patch:
        no_encoding(patch, engine.tokenizer)
        (opening,) = engine.sample([first], Sampling(max_tokens=4, seed=0, ignore_eos=True))
        whole = opening.samples[0]
        spoken = list(whole.token_ids)
        whole.extend([*close, *follow, *chat.generation_prompt_ids])
        second = whole.prompt_ids + whole.token_ids
        assert second[: len(first) + 4] == [*first, *spoken]
        (answer,) = engine.sample([second], Sampling(max_tokens=4, seed=1, ignore_eos=True))
        whole.append(answer.samples[0])
        whole.advantage = [1.0, -1.0]
        stats = engine.train([Group(first, [whole])], GRPO(lr=1e-3))
    assert whole.turns() == [(0, 4), (len(whole.token_ids) - 4, len(whole.token_ids))]
    assert stats["tokens_trained"] == 8 and stats["ratio_max_error"] < 1e-5
    kept = [t for t, on in zip(whole.token_ids, whole.trained_mask(), strict=True) if on]
    assert kept == spoken + answer.samples[0].token_ids
    text = engine.tokenizer.decode(second)
    assert text.endswith("<|im_end|>\n<|im_start|>user\nAnd the dentist?<|im_end|>\n<|im_start|>assistant\n")


def test_the_tokenizer_is_the_folders_own(engine: Engine, model_folder: Path) -> None:
    reference = AutoTokenizer.from_pretrained(model_folder)
    messages = [
        {"role": "user", "content": "What's on today?\n"},
        {"role": "assistant", "content": "Nothing."},
    ]
    messages.append({"role": "user", "content": "Then book it."})
    rendered = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert engine.encode(messages) == reference(rendered, add_special_tokens=False)["input_ids"]
    assert engine.eos_ids == {151645} and engine.vocabulary == len(reference)
    assert torch.equal(engine.decoder.embed, engine.decoder.head)
