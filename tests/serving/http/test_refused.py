"""The HTTP interface: what is turned away, with which words."""

import json

import pytest

from tests.pipelines import PIPELINES
from tests.serving.common import PATH, ask, client_of, make_server, run, served

REFUSED = [
    ({}, "prompt", "Field required"),
    ({"prompt": ""}, "prompt", "at least 1 character"),
    ({"prompt": "x" * 1001}, "prompt", "at most 1000"),
    ({"prompt": 5}, "prompt", "string"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 9}, "n", "less than or equal to 8"),
    ({"n": 1.5}, "n", "integer"),
    ({"size": "64x64"}, "size", "'auto' or '16x16'"),
    ({"response_format": "jpg"}, "response_format", "'b64_json' or 'url'"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"seed": 2**63}, "seed", "less than or equal to"),
    ({"num_inference_steps": 101}, "num_inference_steps", "less than or equal to 100"),
    ({"num_inference_steps": 0}, "num_inference_steps", "greater than or equal to 1"),
    ({"guidance_scale": float("nan")}, "guidance_scale", "finite"),
    ({"guidance_scale": 31}, "guidance_scale", "less than or equal to 30"),
    ({"deadline": 61}, "deadline", "less than or equal to 60"),
    ({"deadline": 0}, "deadline", "greater than 0"),
    ({"user": "x" * 257}, "user", "at most 256"),
    ({"stream": True}, "stream", "pictures are sent when they are whole"),
    ({"stream": 0}, "stream", "pictures are sent when they are whole"),
    ({"output_format": "jpeg"}, "output_format", "pictures are PNG files"),
    ({"output_compression": 50}, "output_compression", "PNG files lose nothing"),
    ({"quality": "hd"}, "quality", "there is one quality: leave it out, or give auto or standard"),
    ({"quality": ["a"]}, "quality", "there is one quality"),
    ({"style": "vivid"}, "style", "there are no styles to choose from: say it in the prompt"),
    ({"background": "transparent"}, "background", "pictures have no transparency"),
    ({"moderation": "low"}, "moderation", "nothing is moderated"),
    ({"partial_images": 2}, "partial_images", "pictures are sent when they are whole"),
    ({"partial_images": False}, "partial_images", "pictures are sent when they are whole"),
    ({"extra": 1}, "extra", "no such field"),
    ({"edits": "first"}, "edits", "list"),
    ({"edits": [{"name": "first"}] * 9}, "edits", "at most 8"),
    ({"edits": [{"name": "first"}] * 2}, "edits[1].name", "named twice"),
    ({"edits": [{"strength": 1}]}, "edits[0].name", "Field required"),
    ({"edits": [{"name": "first", "strength": 4.5}]}, "edits[0].strength", "less than or equal to 4"),
    ({"edits": [{"name": "first", "strength": float("inf")}]}, "edits[0].strength", "finite"),
    ({"edits": [{"name": "first", "path": "/etc"}]}, "edits[0].path", "no such field"),
    ({"edits": [{"name": "first", "window": [1001, 2]}]}, "edits[0].window[0]", "less than or equal to 1000"),
    ({"edits": [{"name": "first", "window": [5]}]}, "edits[0].window[1]", "Field required"),
    ({"n": True}, "n", "a number, not true or false"),
    ({"seed": False}, "seed", "a number, not true or false"),
    ({"num_inference_steps": True}, "num_inference_steps", "a number, not true or false"),
    ({"guidance_scale": True}, "guidance_scale", "a number, not true or false"),
    ({"deadline": True}, "deadline", "a number, not true or false"),
    ({"edits": [{"name": "first", "strength": True}]}, "edits[0].strength", "a number, not true or false"),
    ({"edits": [{"name": "first", "window": [1000, False]}]}, "edits[0].window[1]", "a number, not true or false"),
    ({"edits": [{"name": "../first"}]}, "edits[0].name", "pattern"),
    ({"edits": [{"name": "/etc/passwd"}]}, "edits[0].name", "pattern"),
]


def test_requests_that_are_refused() -> None:
    server = served()

    async def go():
        async with client_of(server) as client:
            for body, param, words in REFUSED:
                body = body if not body or "prompt" in body else {"prompt": "a cat", **body}
                content = json.dumps(body)
                answer = await client.post(PATH, content=content, headers={"content-type": "application/json"})
                error = answer.json()["error"]
                assert answer.status_code == 400, (body, error)
                assert error["param"] == param and words in error["message"] and param in error["message"], error
                assert error["type"] == "invalid_request_error"
            broken = await client.post(PATH, content='{"prompt":', headers={"content-type": "application/json"})
            assert broken.status_code == 400 and "not valid JSON" in broken.json()["error"]["message"]
            text = (await client.get("/metrics")).text
            assert f'cad_fast_rejections_total{{reason="invalid"}} {len(REFUSED) + 1}.0' in text
            assert "cad_fast_pictures_total 0.0" in text

    run(go())


@pytest.mark.parametrize(
    "body", [b'{"prompt": "\xff\xfe"}', b"[" * 20_000, b"\xef\xbb\xbf\x00", b'{"seed": ' + b"9" * 5000 + b"}"]
)
def test_bodies_that_cannot_be_read_as_json(body) -> None:
    status, answer, _ = ask(None, content=body, headers={"content-type": "application/json"})
    assert status == 400 and answer["error"]["code"] == "invalid" and answer["error"]["param"] is None
    assert answer["error"]["message"].startswith("the body is not valid JSON")


def test_fields_of_openai_that_leave_nothing_to_choose() -> None:
    fields = {
        "output_format": "png", "output_compression": 100, "quality": "standard", "style": None, "background": "auto",
        "moderation": "auto", "stream": False, "partial_images": 0, "edits": None, "num_inference_steps": 1,
    }  # fmt: skip
    status, answer, _ = ask({"prompt": "a cat", **fields})
    assert status == 200 and len(answer["data"]) == 1


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"edits": [{"name": "third"}]}, "edits[0].name", "edit_not_found"),
        ({"model": "dall-e-3"}, "model", "model_not_found"),
    ],
)
def test_what_is_not_there(body, param, code) -> None:
    status, answer, _ = ask({"prompt": "a cat", **body})
    assert status == 404 and answer["error"]["param"] == param and answer["error"]["code"] == code


def test_options_that_the_pipeline_does_not_take() -> None:
    server = make_server(PIPELINES["flux"][0](), sizes=("16x16",))
    server.parameters = {name: value for name, value in server.parameters.items() if name != "negative_prompt"}
    status, answer, _ = ask({"prompt": "a cat", "negative_prompt": "a dog"}, server=server)
    assert status == 400 and answer["error"]["param"] == "negative_prompt"


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_bodies_need_the_content_type_of_json(kind) -> None:
    headers = {} if kind is None else {"content-type": kind}
    status, answer, _ = ask(None, content=b'{"prompt": "a cat"}', headers=headers)
    assert status == 400 and answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"] == "the body needs the header Content-Type: application/json"


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies(chunked) -> None:
    async def chunks():
        for _ in range(200):
            yield b" " * 1000

    status, answer, _ = ask(
        None, content=chunks() if chunked else b" " * 200_000, headers={"content-type": "application/json"}
    )
    assert status == 413 and "larger than 65536 bytes" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "words"),
    [
        ("GET", "/nothing", 404, "unknown_route", "there is no route /nothing"),
        ("POST", "/v1/nothing", 404, "unknown_route", "there is no route /v1/nothing"),
        ("GET", "/http/app.py", 404, "unknown_route", "there is no route"),
        ("GET", PATH, 405, "method_not_allowed", f"{PATH} does not take GET: use POST"),
        ("DELETE", "/v1/edits/first", 405, "method_not_allowed", "does not take DELETE: use GET"),
        ("POST", "/page.js", 405, "method_not_allowed", "/page.js does not take POST: use "),
    ],
)
def test_unknown_routes_and_wrong_methods(method, path, status, code, words) -> None:
    given, answer, headers = ask(None, path, method)
    assert given == status and answer["error"]["code"] == code and words in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error" and answer["error"]["param"] is None
    assert ("allow" in headers) == (status == 405)


def test_host_headers() -> None:
    server = served(allowed_hosts=("localhost", "127.0.0.1"))
    assert ask(None, "/health", "GET", server, headers={"host": "localhost:80"})[0] == 200

    async def go():
        async with client_of(served(allowed_hosts=("localhost",))) as client:
            return (await client.get("/health", headers={"host": "evil.example"})).status_code

    assert run(go()) == 400
