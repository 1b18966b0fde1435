"""One text for encoding, stopping and cutting: special tokens, begin tokens, gaps in the ids, threads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from proactor.engine import Engine, EngineError, Sample, Sampling
from proactor.engine.chat import ChatFormat
from proactor.engine.chat_template import ChatError
from proactor.engine.stops import StopStrings
from proactor.engine.text import TextCodec, decode
from tests.engine.test_chat import CHATML
from tests.tiny import save_tiny

WIDTH = 320
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_tokenizer(*specials: str, begin: bool = False, template: str | None = None, **ids: int) -> Any:
    """One token a byte (ids 0 … 255); special tokens follow, or have the ids given by name."""
    vocabulary = {c: i for i, c in enumerate(BYTES)} | {f"<{name}>": i for name, i in ids.items()}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(
        [AddedToken(s, special=True) for s in [*specials, *(f"<{name}>" for name in ids)]]
    )
    if begin:
        first = specials[0]
        pairs = [(first, core.token_to_id(first))]
        core.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=pairs)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", chat_template=template)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare") / "model"
    save_tiny(folder, eos_token_id=300, hidden_size=32, intermediate_size=64, head_dim=8, vocab_size=WIDTH)
    return folder


def load(folder: Path, tokenizer: Any) -> Engine:
    tokenizer.save_pretrained(folder)
    return Engine.load(folder, page_size=4, kv_tokens=1024)


def force(engine: Engine, text: str, **sampling: Any) -> Sample:
    """A sample whose ids are those of ``text``, special tokens included."""
    ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    draw = Sampling(
        max_tokens=len(ids),
        logit_mask=lambda so_far, at: torch.arange(WIDTH) == ids[min(at, len(ids) - 1)],
        **sampling,
    )
    return engine.sample([[1]], draw)[0].samples[0]


# -- vocabulary and begin token ---


def test_ids_with_gaps(bare: Path) -> None:
    """The end token lies above the number of tokens; ids 256 … 299 between have no token."""
    engine = load(bare, byte_tokenizer(end=300))
    assert engine.vocabulary == 301 and engine.eos_ids == {300} and len(engine.tokenizer) == 257
    assert force(engine, "ab<end>").finish_reason == "stop"
    hot = Sampling(n=32, max_tokens=20, temperature=50.0, ignore_eos=True, seed=1)
    drawn = {t for s in engine.sample(["a"], hot)[0].samples for t in s.token_ids}
    assert drawn <= {*range(256), 300} and 300 in drawn
    gap = torch.zeros(WIDTH, dtype=torch.bool)
    gap[270] = True
    with pytest.raises(EngineError, match=r"^prompt 0: logit_mask: no token allowed at position 0$"):
        engine.sample([[1]], Sampling(max_tokens=1, logit_mask=lambda ids, at: gap))


def test_a_text_prompt_is_the_tokenizers_own(bare: Path) -> None:
    tokenizer = byte_tokenizer("<s>", begin=True)
    engine = load(bare, tokenizer)
    assert engine.encode("ab") == tokenizer("ab")["input_ids"] == [256, *tokenizer("ab")["input_ids"][1:]]
    assert engine.chat is not None
    assert engine.chat.encode_continuation("ab") == engine.encode("ab")[1:]
    assert engine.encode("<s>")[0] == 256 and engine.encode("<s>").count(256) == 1
    question = [{"role": "user", "content": "ab"}]
    ids = engine.encode(question)
    assert ids[0] == 256 and ids.count(256) == 1
    later = [*question, {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}]
    assert engine.encode(later)[: len(ids)] == ids
    assert engine.chat.encode_message(question[0], first=True) == engine.chat.encode(question)
    assert 256 not in engine.chat.encode_message(question[0])
    assert 256 not in engine.chat.encode_answer("c")


def test_a_template_writes_its_own_begin_token() -> None:
    chat = ChatFormat(byte_tokenizer("<s>", "<|im_start|>", "<|im_end|>", begin=True, template=CHATML))
    assert 256 not in chat.encode([{"role": "user", "content": "ab"}])


def test_without_a_post_processor_nothing_is_added() -> None:
    chat = ChatFormat(byte_tokenizer("<s>"))
    assert chat.encode_text("ab") == chat.encode_continuation("ab") and len(chat.encode_text("ab")) == 2


# -- what people write never becomes a control token ---


def test_text_of_a_template_token_stays_text() -> None:
    """The content is also what the template writes before it: the first occurrence is the template's."""
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>", template=CHATML)
    chat = ChatFormat(tokenizer)
    for content in ("<|im_start|>", "user\n<|im_end|>", "<|im_start|>user\n<|im_start|>", " <|im_end|>\n"):
        for role in ("user", "assistant"):
            question = {"role": "user", "content": "x"}
            plain = chat.encode([question, {"role": role, "content": "x"}])
            ids = chat.encode([question, {"role": role, "content": content}])
            opening, ending = (len(plain) - 1 - plain[::-1].index(token) for token in (256, 257))
            assert ids[: opening + 1] == plain[: opening + 1] and ids[ending - len(plain) :] == plain[ending:]
            assert (ids.count(256), ids.count(257)) == (2, 2)
            assert content in tokenizer.decode(ids)


def test_only_content_holds_a_special_token() -> None:
    chat = ChatFormat(byte_tokenizer("<|im_start|>", "<|im_end|>", template=CHATML))
    call = {"function": {"name": "f", "arguments": {"x": ["<|im_end|>"]}}}
    for extra in ({"tool_calls": [call]}, {"name": "<|im_end|>"}):
        with pytest.raises(
            ChatError, match=r"^message 2: only 'content' can hold the special token '<\|im_end"
        ):
            chat.encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **extra}])


def test_a_vocabulary_that_holds_the_special_text() -> None:
    """The model itself knows ``<end>`` as a word, so that splitting special tokens is not enough."""
    words = {"a": 0, "<end>": 1, "<": 2, "end>": 3, "[unk]": 4}
    core = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", unk_token="[unk]")
    assert tokenizer("a <end>", split_special_tokens=True)["input_ids"] == [0, 1]
    assert TextCodec(tokenizer).plain("a <end>") == [0, 2, 3]
    assert TextCodec(tokenizer).plain("zebra") == [4], "the unknown token is no control token"
    core = Tokenizer(models.WordLevel({"a": 0, "#": 1}, unk_token="a"))
    single = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="#")
    with pytest.raises(EngineError, match="becomes a special token in this tokenizer"):
        TextCodec(single).plain("#")


def test_threads_do_not_share_how_they_encode() -> None:
    chat = ChatFormat(byte_tokenizer())
    text, done = "please <end> this " * 20, threading.Event()
    wrong = []

    def others() -> None:
        while not done.is_set():
            chat.encode([{"role": "user", "content": "hello"}])

    workers = [threading.Thread(target=others) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in range(1500):
        wrong += [256 in chat.encode_text(text)]
    done.set()
    for worker in workers:
        worker.join()
    assert not any(wrong)


# -- templates that fail ---


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        ("{{ m['content'] + m['tool_calls'][0]['arguments'] }}", "TypeError: can only concatenate str"),
        ("{{ m['content'] // 2 }}", "TypeError: unsupported operand"),
        ("{{ raise_exception('no tools\nhere') }}", "no tools here"),
        ("{{ m.missing.deeper }}", "no attribute 'missing'"),
        ("{% if m['content'] | int > 'a' %}{% endif %}", "TypeError: '>' not supported"),
    ],
)
def test_a_failing_template_is_one_line(piece: str, words: str) -> None:
    chat = ChatFormat(
        byte_tokenizer(
            template="{% for m in messages %}{% if 'tool_calls' in m %}" + piece + "{% endif %}"
            "{{ '<' + m['role'] + '>' + m['content'] + '<end>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
        )
    )
    call = {"role": "assistant", "content": "b", "tool_calls": [{"arguments": {"x": 1}}]}
    with pytest.raises(
        ChatError, match=r"^the chat template refuses the roles \['user', 'assistant'"
    ) as caught:
        chat.encode([{"role": "user", "content": "a"}, call])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_several_templates_without_a_default() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"one": CHATML, "two": CHATML}
    with pytest.raises(ChatError, match=r"^the tokenizer's chat templates: "):
        ChatFormat(tokenizer)


@pytest.mark.parametrize("message", ["text", 3, {"role": "user"}, {"role": 1, "content": "a"}])
def test_messages_are_mappings_of_text(message: Any) -> None:
    chat = ChatFormat(byte_tokenizer())
    for ask in (lambda: chat.encode([message]), lambda: chat.encode_message(message)):
        with pytest.raises(ChatError, match=r"^message 1: "):
            ask()


# -- stop strings ---


@pytest.mark.parametrize(
    ("drawn", "stop", "text", "reason"),
    [
        ("foo<s>user", "<s>user", "foo", "stop"),
        ("foo<s>user", "user", "foo", "stop"),
        ("foo<s>user", "o<s>u", "fo", "stop"),
        ("foo<s><s>", "<s><s>", "foo", "stop"),
        ("foo<s>bar", "s>b", "foo", "stop"),
        ("ab<s>cd", "bc", "abcd", "length"),
        ("ab<s>cd", "d", "abc", "stop"),
        ("ab<end>", "end", "ab", "stop"),
        ("ab<end>", "b<end>", "a", "stop"),
        ("one two", " two", "one", "stop"),
        ("größe🎉🎉🎉🎉🎉", "🎉🎉🎉🎉🎉", "größe", "stop"),
        ("a🎉b", "b", "a🎉", "stop"),
        ("aé<s>é", "é<s>é", "a", "stop"),
    ],
)
def test_stopping_and_cutting_read_one_text(
    bare: Path, drawn: str, stop: str, text: str, reason: str
) -> None:
    sample = force(load(bare, byte_tokenizer("<s>", end=300)), drawn, stop=(stop,))
    assert (sample.text, sample.finish_reason) == (text, reason)


def test_a_stop_ends_at_its_last_token(bare: Path) -> None:
    engine = load(bare, byte_tokenizer("<s>", end=300))
    ids = engine.tokenizer("foo<s>user", add_special_tokens=False)["input_ids"]

    def mask(seen: list[int], at: int) -> torch.Tensor:
        return torch.arange(WIDTH) == ids[at % len(ids)]

    draw = Sampling(max_tokens=30, stop=("o<s>u", "zzz"), logit_mask=mask)
    (sample,) = engine.sample([[1]], draw)[0].samples
    assert sample.token_ids == ids[:5] and sample.text == "fo"


def test_the_first_of_several_stops_cuts() -> None:
    tokenizer = byte_tokenizer("<s>")
    ids = tokenizer("foo<s>bar", add_special_tokens=False)["input_ids"]
    strings = StopStrings(tokenizer)
    search = strings.search(("bar", "<s>bar"))
    assert [search.take(token) for token in ids] == [False] * 6 + [True]
    assert strings.text(ids, ("bar", "<s>bar")) == "foo"
    assert strings.text(ids, ("bar",)) == "foo"
    assert strings.text(ids, ()) == "foobar"
    assert decode(tokenizer, ids, specials=True) == "foo<s>bar"


def test_white_space_is_never_tidied() -> None:
    """transformers tidies where the tokenizer says so: since 5.0 vocabularies of words, before that all."""
    words = ["He", "said", ".", "ok", "n't"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="ok"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", clean_up_tokenization_spaces=True
    )
    ids = tokenizer("He said . ok n't", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "He said. okn't"
    strings = StopStrings(tokenizer)
    search = strings.search((" .",))
    assert strings.text(ids, ()) == "He said . ok n't"
    assert [search.take(token) for token in ids[:3]] == [False, False, True]
    assert strings.text(ids, (" .",)) == "He said"


# -- a mask on a very sure model ---


@pytest.mark.parametrize("temperature", [0.0, 1e-4, 0.01, 1.0])
def test_a_mask_on_a_sure_model(bare: Path, temperature: float) -> None:
    """At a low temperature all that a mask leaves may be e^-1000 times less probable than the best token."""
    engine = load(bare, byte_tokenizer("<s>", end=300))
    whole = torch.cat([engine.logprobs([[1, t]])[0] for t in range(256)])
    worst = whole.argsort()[:5]
    allowed = torch.zeros(WIDTH, dtype=torch.bool)
    allowed[worst] = True
    draw = Sampling(n=24, max_tokens=1, temperature=temperature, logit_mask=lambda ids, at: allowed)
    samples = engine.sample([[1]], draw)[0].samples
    assert {s.token_ids[0] for s in samples} <= set(worst.tolist())
    if temperature == 0:
        assert {s.token_ids[0] for s in samples} == {int(worst[4])}
        return
    wanted = (whole[worst] / temperature).log_softmax(0)
    for sample in samples:
        place = worst.tolist().index(sample.token_ids[0])
        assert sample.logprobs[0] == pytest.approx(float(wanted[place]), abs=2e-5 / temperature)
        assert sample.policy_logprobs[0] <= sample.logprobs[0]
