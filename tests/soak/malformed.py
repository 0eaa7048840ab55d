"""Requests that must be refused, each with the error that it must get."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tests.serving.common import PATH
from tests.serving.http.test_refused import REFUSED

from .served import TOKEN

JSON = {"content-type": "application/json"}
BODY = b'{"prompt": "a cat", "num_inference_steps": 1}'


def raw(body: bytes, **headers: Any) -> bytes:
    """A whole request for a picture, as it goes over the wire. A header that is None is left out."""
    lines = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": len(body), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + body


class Malformed(NamedTuple):
    """One request, and the code of the error with which it ends."""

    method: str
    path: str
    headers: dict[str, str]
    content: bytes
    code: str


def _bodies() -> list[Malformed]:
    """Bodies that are JSON, or nearly."""
    fields = [{"prompt": "a cat", **body} if body and "prompt" not in body else body for body, *_ in REFUSED]
    fields = [body for body in fields if "size" not in body]
    texts = [json.dumps(body).encode() for body in fields] + [
        b"", b"null", b"[]", b"5", b'"a cat"', b"{", b'{"prompt": "a cat"', b"{" * 20000, b"[" * 20000,
        b'{"prompt": "a cat", "seed": ' + b"9" * 5000 + b"}", b'{"prompt": "a cat", "guidance_scale": 1e999}',
        b'{"prompt": "a cat", "guidance_scale": -Infinity}', b'{"prompt": "\xff\xfe"}', b"\xef\xbb\xbf\x00\x01",
        b'{"prompt": "a cat"} {}', b"\x00" * 100, b'{"prompt": {"$ne": null}}', b'{"prompt": "a cat", "__class__": 1}',
        b'{"prompt": "a cat", "size": "16x16x16"}', b'{"prompt": "a cat", "size": "0x0"}',
        b'{"prompt": "a cat", "edits": {"name": "first"}}', b'{"prompt": "a cat", "edits": [[[[]]]]}',
        b'{"prompt": "a cat", "edits": [{"name": "first\\u0000"}]}', b'{"prompt": "a cat", "edits": [{"name": ""}]}',
        b'{"prompt": "a cat", "edits": [{"name": "first", "window": [1, 2, 3]}]}',
        b'{"prompt": "a cat", "edits": [{"name": "first", "strength": "1e500"}]}',
    ]  # fmt: skip
    return [Malformed("POST", PATH, JSON, text, "invalid") for text in texts]


def _others() -> list[Malformed]:
    """Other bodies, heads, paths and methods."""
    admin = {"authorization": f"Bearer {TOKEN}"}
    named = [
        (b'{"prompt": "a cat", "edits": [{"name": "none-of-this-name"}]}', "edit_not_found"),
        (b'{"prompt": "a cat", "model": "dall-e-3"}', "model_not_found"),
        (b'{"prompt": "' + b"a" * 70_000 + b'"}', "body_too_large"),
    ]
    routes = [
        ("GET", "/nothing", {}, "unknown_route"),
        ("GET", "/%00%0d%0a2026-01-01%20ERROR%20forged", {}, "unknown_route"),
        ("GET", "/../../etc/passwd", {}, "unknown_route"),
        ("GET", "/..%2f..%2fetc%2fpasswd", {}, "unknown_route"),
        ("GET", "/" + "a" * 5000, {}, "unknown_route"),
        ("GET", PATH, {}, "method_not_allowed"),
        ("DELETE", "/v1/edits/first", {}, "method_not_allowed"),
        ("BREW", "/health", {}, "method_not_allowed"),
        ("GET", "/v1/edits/none-of-this-name", {}, "edit_not_found"),
        ("GET", "/v1/edits/%1b%5b2J", {}, "edit_not_found"),
        ("GET", "/v1/models/another", {}, "model_not_found"),
        ("GET", "/v1/images/files/guessed.png", {}, "not_found"),
        ("GET", "/health", {"host": "evil.example"}, "unknown_host"),
        ("GET", "/health", {"host": "localhost@evil.example"}, "unknown_host"),
        ("POST", "/v1/edits/first/unload", {}, "forbidden"),
        ("POST", "/v1/edits/first/load", {"authorization": f"Bearer {TOKEN}x"}, "forbidden"),
        ("POST", "/v1/edits/first/load", {"authorization": f"Basic {TOKEN}"}, "forbidden"),
        ("POST", "/v1/edits/first/load", {"authorization": "Bearer \xe9\xff"}, "forbidden"),
        ("POST", "/v1/edits/none-of-this-name/load", admin, "edit_not_found"),
        ("POST", "/v1/edits/..%2ffirst/unload", admin, "unknown_route"),
        ("POST", "/v1/edits/../../first/unload", admin, "unknown_route"),
    ]
    types = [{}, {"content-type": "text/plain"}, {"content-type": "multipart/form-data; boundary=x"}]
    return [
        *(Malformed("POST", PATH, JSON, body, code) for body, code in named),
        *(Malformed(method, path, headers, b"", code) for method, path, headers, code in routes),
        *(Malformed("POST", PATH, headers, BODY, "invalid") for headers in types),
    ]


MALFORMED: tuple[Malformed, ...] = (*_bodies(), *_others())

# What is no HTTP, or not enough of it: bytes, and the code of the error.
NOISE: tuple[tuple[bytes, str], ...] = (
    (b"\x00\x01\x02 what\r\n\r\n", "invalid"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n", "invalid"),
    (b"GET / HTTP/1.1\r\n" + b"Host: localhost\r\n" * 2 + b"\r\n", "invalid"),
    (b"GET / HTTP/1.1\r\n\r\n", "invalid"),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "invalid"),
    (b"POST /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", "invalid"),
    (b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", "invalid"),
    (b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "invalid"),
    (b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999999999999\r\n\r\n", "invalid"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "unknown_host"),
    (raw(b"zz\r\nno chunk", **{"Transfer-Encoding": "chunked", "Content-Length": None}), "invalid"),
)
