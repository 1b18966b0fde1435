"""The server: who gets in, what is refused, and what a change gives back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from proactor.review.app import build_app
from proactor.review.desk import Desk
from proactor.review.guard import LARGEST_BODY
from proactor.sole_writer import sole_writer
from proactor.sources import load
from tests.proactor.review.desk_files import SCRIPT, dialogue, lines_of, put, turns, window

TOKEN, PORT = "secret-token", 8765


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    script = dialogue("script", domain=SCRIPT, turns=turns(SCRIPT, "a", SCRIPT, "b", "c"))
    put(tmp_path, dialogue("one"), dialogue("two", window("x"), window("y", ready=None)), script)
    return tmp_path


@pytest.fixture
def client(folder: Path) -> TestClient:
    app = build_app(Desk(folder, "anna"), TOKEN, PORT)
    return TestClient(app, base_url=f"http://127.0.0.1:{PORT}/{TOKEN}/", raise_server_exceptions=False)


def view(client: TestClient, name: str = "one") -> dict[str, Any]:
    answer = client.get("api/dialogue", params={"id": name})
    assert answer.status_code == 200, answer.text
    return answer.json()


def edit_of(shown: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """The edit that changes ``fields`` of the first window."""
    kept = ("id", "name", "params", "coverage", "ready", "withdrawn", "status")
    windows = [{key: w[key] for key in kept} for w in shown["windows"]]
    windows[0] |= fields
    return {"id": shown["id"], "version": shown["version"], "windows": windows}


def test_a_dialogue_is_shown_changed_and_changed_back(client: TestClient, folder: Path) -> None:
    before = (folder / "windows.jsonl").read_bytes()
    shown = view(client)
    assert shown["windows"][0]["status"] == "" and not shown["row"]["reviewed"]
    saved = client.post("api/dialogue", json=edit_of(shown, status="accepted")).json()
    assert saved["windows"][0]["review"]["by"] == "anna" and saved["row"]["reviewed"]
    assert (
        json.loads(lines_of(folder / "windows.jsonl")[0])["references"][0]["review"]["status"] == "accepted"
    )
    back = {"id": "one", "version": saved["version"], "to": shown["version"]}
    assert client.post("api/undo", json=back).json() == shown
    assert (folder / "windows.jsonl").read_bytes() == before


def test_the_overview_counts_and_names_doubts(client: TestClient) -> None:
    seen = client.get("api/overview").json()
    rows = {row["id"]: row for row in seen["dialogues"]}
    assert (rows["one"]["windows"], rows["one"]["decided"], rows["one"]["doubts"]) == (1, 0, 0)
    assert rows["two"]["doubts"] == 1 and rows["two"]["overlap"] is None
    assert [tool["name"] for tool in seen["tools"]] == ["book", "find"] and seen["reviewer"] == "anna"
    assert client.get("api/search", params={"words": "TUESDAY book"}).json() == ["one", "two"]


def test_a_second_tab_is_refused_and_loses_nothing(client: TestClient, folder: Path) -> None:
    shown = view(client)
    assert client.post("api/dialogue", json=edit_of(shown, ready=[5, 5])).status_code == 200
    saved = (folder / "windows.jsonl").read_bytes()
    late = client.post("api/dialogue", json=edit_of(shown, ready=[3, 3]))
    assert late.status_code == 409 and "was changed meanwhile (last by anna" in late.json()["error"]
    assert (folder / "windows.jsonl").read_bytes() == saved


def test_half_of_an_emoji_is_shown_saved_and_changed_back(client: TestClient, folder: Path) -> None:
    talk = turns("so \ud83d", "b", "c", "d", "e", "f", "g", "h")
    put(folder, dialogue("one", turns=talk))
    assert [row["id"] for row in client.get("api/overview").json()["dialogues"]] == ["one"]
    assert client.get("api/search", params={"words": "so"}).json() == ["one"]
    shown = view(client)
    assert shown["turns"][0]["text"] == "so \ud83d"
    saved = client.post("api/dialogue", json=edit_of(shown, status="accepted"))
    assert saved.status_code == 200, saved.text
    back = {"id": "one", "version": saved.json()["version"], "to": shown["version"]}
    assert client.post("api/undo", json=back).json() == shown
    lost = client.post("api/undo", content=json.dumps({**back, "id": "\ud83d"}))
    assert 400 <= lost.status_code < 500 and "\n" not in lost.json()["error"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ready": [1, 9]}, "outside coverage"),
        ({"coverage": [1, 99], "ready": None}, "covers turn 99 of 8"),
        ({"name": "fly"}, "tool 'fly' is not in catalog.json"),
        ({"status": "removed"}, "windows.0.status"),
        ({"params": {"day": 3}}, "windows.0.params.day"),
        ({"more": 1}, "windows.0.more"),
    ],
)
def test_a_wrong_change_is_one_line_and_changes_nothing(
    client: TestClient, folder: Path, fields: dict[str, Any], message: str
) -> None:
    before = (folder / "windows.jsonl").read_bytes()
    answer = client.post("api/dialogue", json=edit_of(view(client), **fields))
    assert 400 <= answer.status_code < 500
    assert message in answer.json()["error"] and "\n" not in answer.json()["error"]
    assert (folder / "windows.jsonl").read_bytes() == before


def test_a_file_that_another_process_writes_is_told_and_can_be_tried_again(
    client: TestClient, folder: Path
) -> None:
    edit = edit_of(view(client), status="rejected")
    with sole_writer(folder):
        assert "another process writes there" in client.post("api/dialogue", json=edit).json()["error"]
    assert client.post("api/dialogue", json=edit).status_code == 200
    (folder / "windows.jsonl").write_text("{broken\n")
    broken = client.get("api/dialogue", params={"id": "one"})
    assert broken.status_code == 400 and "windows.jsonl:1: not JSON" in broken.json()["error"]


def request(client: TestClient, path: str, method: str = "GET", **headers: str) -> int:
    address = f"http://127.0.0.1:{PORT}/{path}"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.request(
        method, address, headers=named, content=b"{}" if method == "POST" else None
    ).status_code


def test_only_the_address_that_was_printed_gets_in(client: TestClient) -> None:
    assert request(client, f"{TOKEN}/") == 200
    for wrong in ("", "api/overview", "secret-tokem/", "secret-token2/", f"x/{TOKEN}/", "%00/", "…/"):
        assert request(client, wrong) == 403, wrong
    assert request(client, TOKEN) == 404
    assert request(client, f"{TOKEN}/../{TOKEN}/api/none") == 404
    assert request(client, f"{TOKEN}/openapi.json") == 404


def test_the_token_is_compared_in_constant_time(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr("proactor.review.guard.secrets.compare_digest", compare)
    assert request(client, "guess/") == 403 and request(client, f"{TOKEN}/") == 200
    assert compared == [(b"guess", TOKEN.encode()), (TOKEN.encode(), TOKEN.encode())]


def test_another_name_for_this_machine_is_refused(client: TestClient) -> None:
    assert request(client, f"{TOKEN}/", host=f"localhost:{PORT}") == 200
    for host in (f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", f"127.0.0.1:{PORT}.evil.example", ""):
        assert request(client, f"{TOKEN}/", host=host) == 421, host


def test_writing_is_for_the_page_alone(client: TestClient) -> None:
    path, kind = f"{TOKEN}/api/dialogue", "application/json"
    assert request(client, path, "POST", content_type=kind) == 422
    assert request(client, path, "POST", content_type="text/plain") == 415
    assert request(client, path, "POST") == 415
    assert request(client, path, "POST", content_type=kind, origin="http://evil.example") == 403
    assert request(client, path, "POST", content_type=kind, origin="null") == 403
    assert request(client, path, "POST", content_type=kind, origin=f"http://127.0.0.1:{PORT}") == 422
    assert request(client, path, "POST", content_type=kind, content_length=str(LARGEST_BODY + 1)) == 413


def test_a_body_without_a_length_is_cut_off(client: TestClient) -> None:
    def endless() -> Any:
        for _ in range(LARGEST_BODY // 65536 + 2):
            yield b" " * 65536

    answer = client.post("api/dialogue", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_every_answer_carries_the_policy_and_no_cache(client: TestClient) -> None:
    for path in ("", "api/overview", "api/dialogue?id=none", "../other/"):
        headers = client.get(path).headers
        assert "script-src 'sha256-" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer" and headers["x-frame-options"] == "DENY"


def test_the_page_holds_no_data_and_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("").text
    assert "alert(" not in page and "http://" not in page and "https://" not in page
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", 'style="', "onclick="):
        assert way not in page, way


def test_windows_beside_give_an_agreement(tmp_path: Path) -> None:
    mine = put(tmp_path, dialogue("one"), dialogue("two"))
    other = put(tmp_path, dialogue("one"), dialogue("two", window(ready=[5, 5])), name="b.jsonl")
    desk = Desk(mine, "anna", other)
    assert [row["overlap"] for row in desk.overview()["dialogues"]] == [1.0, 0.5]
    assert desk.view("two")["beside"][0]["ready"] == [5, 5]


def test_doubts_come_from_the_annotations_report(tmp_path: Path) -> None:
    mine = put(
        tmp_path, dialogue("one", window(ready=None), window("b", value_turns={"day": 5}, coverage=[3, 5]))
    )
    report = {
        "masked": [{"dialogue": "one", "reference": "a1", "tool": "book", "blocked_by": ["day: never said"]}],
        "repeated": [{"dialogue": "one", "actions": ["book at turn 5"]}],
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    shown = Desk(mine, "anna").view("one")
    doubts = {w["id"]: w["doubts"] for w in shown["windows"]}
    assert doubts["a1"] == ["when it may fire is unknown: day: never said"]
    assert doubts["b"] == [
        "may fire before day is said, at turn 5",
        "the tool asks first, but may fire as soon as it is under way",
    ]
    assert shown["doubts"] == ["book at turn 5: logged in the window of the call before"]
    assert shown["row"]["doubts"] == 4


def test_a_value_that_is_a_number_is_shown_as_text_and_stays_a_number(tmp_path: Path) -> None:
    values = {"day": 3, "size": 1.5, "code": 12345678901234567890, "on": True, "none": None, "text": "3"}
    texts = {"day": "3", "size": "1.5", "code": "12345678901234567890", "on": "true", "text": "3"}
    file = put(tmp_path, dialogue("d", window(params=values, value_turns={}, values_seen=None)))
    before = file.read_bytes()
    client = TestClient(
        build_app(Desk(tmp_path, "anna"), TOKEN, PORT), base_url=f"http://127.0.0.1:{PORT}/{TOKEN}/"
    )

    def kept() -> str:
        [line] = lines_of(file)
        return json.dumps(json.loads(line)["references"][0]["params"])

    shown = view(client, "d")
    assert shown["windows"][0]["params"] == texts
    assert client.post("api/dialogue", json=edit_of(shown)).json() == shown and file.read_bytes() == before
    saved = client.post("api/dialogue", json=edit_of(shown, status="accepted")).json()
    assert saved["windows"][0]["params"] == texts and kept() == json.dumps(values)
    changed = {**{name: text for name, text in texts.items() if name != "on"}, "day": "4"}
    client.post("api/dialogue", json=edit_of(saved, params=changed))
    assert kept() == json.dumps({**{n: v for n, v in values.items() if n != "on"}, "day": "4"})
    assert load("jsonl", tmp_path).dialogues[0].references[0].params == changed
