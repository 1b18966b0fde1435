"""Names of models, and the adapter that is swapped while others are served."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from proactor.engine import EngineError, LoRA, Sampling
from proactor.server.models import Models
from tests.engine.engines import load, shake
from tests.proactor.server.served import Served, error

IDS = [5, 80, 200]


@pytest.fixture
def swapping(chat_folder: Path, adapters: Path) -> Iterator[Served]:
    """A server of its own, whose adapter may change."""
    engine = load(chat_folder, stir=False, deterministic=True, kv_tokens=4096)
    engine.load_adapter(adapters / "one")
    with Served(engine, adapter="one", root=adapters) as served:
        yield served
        served.wait_idle()
    engine.release()


def drawn(served: Served, model: str, tokens: int = 12) -> Any:
    params = {"max_tokens": tokens, "seed": 3, "ignore_eos": True}
    asked = {"model": model, "token_ids": IDS, "sampling_params": params}
    status, _, body = served.ask("POST", "/inference/v1/generate", asked)
    return json.loads(body)["choices"][0]["token_ids"] if status == 200 else (status, error(body)["code"])


def sampled(served: Served, tokens: int = 12) -> list[int]:
    sampling = Sampling(max_tokens=tokens, seed=3, ignore_eos=True)
    return served.engine.sample([IDS], sampling)[0].samples[0].token_ids


def swap(served: Served, name: Any, path: Any) -> tuple[int, str]:
    status, _, body = served.ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
    return status, body


def test_models_are_listed_with_their_context(server: Served) -> None:
    cards = server.openai().models.list().data
    assert [card.id for card in cards] == ["tiny", "one"]
    assert all(card.max_model_len == 1024 for card in cards)  # type: ignore[attr-defined]
    assert server.openai().models.retrieve("one").id == "one"
    with pytest.raises(openai.NotFoundError):
        server.openai().models.retrieve("two")


def test_an_adapter_is_swapped_and_forgotten(swapping: Served) -> None:
    first, base = drawn(swapping, "one"), drawn(swapping, "tiny")
    assert first == sampled(swapping) != base
    status, said = swap(swapping, "two", "two")
    assert status == 200 and "replaced 'one', as one adapter is loaded at a time" in said
    second = drawn(swapping, "two")
    assert second == sampled(swapping) != first and drawn(swapping, "tiny") == base
    assert drawn(swapping, "one") == (404, "model_not_found")
    assert swap(swapping, "one", "one")[0] == 200 and drawn(swapping, "one") == first
    forget = {"lora_name": "one"}
    assert swapping.ask("POST", "/v1/unload_lora_adapter", forget)[0] == 200
    assert drawn(swapping, "one") == (404, "model_not_found") and drawn(swapping, "tiny") == base
    assert swapping.ask("POST", "/v1/unload_lora_adapter", forget)[0] == 404


def test_the_engines_other_adapters_are_models_that_stay(chat_folder: Path, adapters: Path) -> None:
    loras = {"first": LoRA(rank=4, alpha=8), "judge": LoRA(rank=2), "policy": LoRA(rank=2)}
    engine = load(chat_folder, stir=False, lora=loras, kv_tokens=4096)
    shake(engine, 3, adapter="judge")
    sampling = Sampling(max_tokens=12, seed=3, ignore_eos=True, adapter="judge")
    expected = engine.sample([IDS], sampling)[0].samples[0].token_ids
    with Served(engine, adapter="one", root=adapters) as served:
        client = served.openai()
        assert [card.id for card in client.models.list().data] == ["tiny", "one", "judge", "policy"]
        answer = client.chat.completions.create(
            model="judge", messages=[{"role": "user", "content": "Dry?"}], max_tokens=2
        )
        assert (answer.model, answer.system_fingerprint) == ("judge", "judge-1")
        answer = client.chat.completions.create(
            model="one", messages=[{"role": "user", "content": "Dry?"}], max_tokens=2
        )
        assert answer.system_fingerprint == "first-0", "whatever another one is named"
        assert swap(served, "judge", "two")[0] == 400 and swap(served, "two", "two")[0] == 200
        assert drawn(served, "judge") == expected != drawn(served, "two")
        served.wait_idle()
    with pytest.raises(EngineError, match=r"^models: two are named judge$"):
        Models(engine, "tiny", adapter="judge")
    engine.release()


def test_no_answer_is_of_two_adapters(swapping: Served) -> None:
    """A swap waits for the answers that the old adapter still draws; who comes meanwhile is told to wait."""
    expected = sampled(swapping, 150)
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(drawn(swapping, "one", 150)))
    asking.start()
    while not swapping.engine.counters().get("decoding"):
        time.sleep(0.001)
    swapped: list[Any] = []
    changing = threading.Thread(target=lambda: swapped.append(swap(swapping, "two", "two")))
    changing.start()
    while not swapping.serving.models._changing and not answers:
        time.sleep(0.001)
    meanwhile = drawn(swapping, "two")
    asking.join()
    changing.join()
    assert answers == [expected] and swapped[0][0] == 200
    assert meanwhile in ((503, None), (404, "model_not_found"), sampled(swapping))
    assert drawn(swapping, "two") == sampled(swapping)


@pytest.mark.parametrize(
    ("name", "path", "status"),
    [
        ("../tiny", "two", 400),
        ("tiny", "two", 400),
        ("a\r\nX-Evil: 1", "two", 400),
        (None, "two", 400),
        ("two", None, 400),
        ("two", "", 400),
        ("two", "../../etc", 400),
        ("two", "/etc", 400),
        ("two", "two\0", 400),
        ("two", "missing", 400),
    ],
)
def test_an_adapter_from_elsewhere_is_refused(server: Served, name: Any, path: Any, status: int) -> None:
    got, body = swap(server, name, path)
    assert got == status and "lora_" in error(body)["message"]
    assert [card.id for card in server.openai().models.list().data] == ["tiny", "one"]


def test_a_link_that_leads_out_is_refused(server: Served, adapters: Path, tmp_path: Path) -> None:
    (adapters / "link").symlink_to(tmp_path)
    status, body = swap(server, "two", "link")
    (adapters / "link").unlink()
    assert status == 400 and "no folder below" in error(body)["message"]


def test_an_adapter_that_does_not_fit_leaves_the_present_one(server: Served, adapters: Path) -> None:
    (adapters / "empty").mkdir()
    before = drawn(server, "one")
    status, body = swap(server, "two", "empty")
    (adapters / "empty").rmdir()
    assert (
        status == 400 and "adapter_config.json" in error(body)["message"] and drawn(server, "one") == before
    )


def test_without_the_flag_nothing_is_loaded(chat_folder: Path) -> None:
    engine = load(chat_folder, stir=False)
    with Served(engine) as served:
        status, body = swap(served, "two", "two")
        assert status == 403 and "--adapters-from" in error(body)["message"]
        assert served.ask("POST", "/v1/unload_lora_adapter", {"lora_name": "tiny"})[0] == 403
    engine.release()
