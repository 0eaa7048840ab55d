"""The HTTP interface: what OpenAI's own client makes of it, and what clients and the server do to each other."""

import asyncio
import json
import threading

import httpx2
import openai
import pytest

from cad_fast.serving.engine.edited_passes import RowWise
from cad_fast.serving.engine.jobs import PictureJob, RequestedEdit
from cad_fast.serving.server import native_size
from tests.pipelines import PIPELINES, flux, stable_diffusion
from tests.serving.common import (
    PATH,
    ROUNDING,
    Alone,
    ask,
    client_of,
    decoded,
    distance,
    make_server,
    run,
    served,
)


def test_openai_client() -> None:
    server = served(model="tiny")
    first = server.library.get("first")
    extra = {"seed": 7, "num_inference_steps": 3, "guidance_scale": 4.0, "negative_prompt": "dog"}

    async def go():
        async with client_of(server, httpx2) as http:
            client = openai.AsyncOpenAI(base_url="http://testserver/v1", api_key="any", http_client=http, max_retries=0)
            models = [model.id async for model in client.models.list()]
            assert (await client.models.retrieve("tiny")).id == "tiny"
            edited = await client.images.generate(
                prompt="a cat",
                model="tiny",
                n=2,
                size="16x16",
                response_format="b64_json",
                user="someone",
                extra_body={**extra, "edits": [{"name": "first", "strength": 1.5, "window": [1000, 300]}]},
            )
            plain = await client.images.generate(prompt="a cat", response_format="url", extra_body=extra)
            file = await http.get(plain.data[0].url)
            with pytest.raises(openai.BadRequestError) as error:
                await client.images.generate(prompt="a cat", n=99)
            return models, edited, file, error.value

    models, edited, file, error = run(go())
    assert models == ["tiny"] and [picture.seed for picture in edited.data] == [7, 8]
    arguments = {name: value for name, value in extra.items() if name != "seed"}
    alone = Alone(stable_diffusion())
    job = PictureJob("", "a cat", seed=7, arguments=arguments, edits=(RequestedEdit(first, 1.5, (300, 1000)),))
    for number, picture in enumerate(edited.data):
        assert distance(decoded(picture.b64_json), alone.draw(job, number)) <= ROUNDING
    assert file.headers["content-type"] == "image/png" and file.content.startswith(b"\x89PNG")
    assert error.param == "n" and error.type == "invalid_request_error" and "less than or equal to 8" in error.message


def test_true_cfg_scale_is_for_pipelines_that_have_it() -> None:
    """Flux takes its guidance scale as an input of the model, and a negative prompt by this scale."""
    extra = {"num_inference_steps": 2, "guidance_scale": 2.0, "true_cfg_scale": 5.0, "negative_prompt": "dog"}
    server = make_server(flux())
    status, answer, _ = ask({"prompt": "a cat", "seed": 7, **extra}, server=server)
    assert status == 200, answer
    size = dict(zip(("width", "height"), map(int, server.sizes[0].split("x")), strict=True))
    alone = Alone(flux()).draw(PictureJob("", "a cat", seed=7, arguments={**extra, **size}))
    assert distance(decoded(answer["data"][0]["b64_json"]), alone) <= ROUNDING
    without = Alone(flux()).draw(PictureJob("", "a cat", seed=7, arguments={**extra, **size, "true_cfg_scale": 1.0}))
    assert distance(alone, without) > ROUNDING
    for given, words in ((31, "less than or equal to 30"), (2.0, "true_cfg_scale: the model does not take it")):
        status, answer, _ = ask({"prompt": "a cat", "true_cfg_scale": given})
        assert status == 400 and answer["error"]["param"] == "true_cfg_scale" and words in answer["error"]["message"]


def test_a_pipeline_without_a_guidance_scale_of_its_own_is_given_none() -> None:
    class Unscaled(type(flux())):
        def __call__(self, *args, guidance_scale=None, **kwargs):
            seen.append(guidance_scale)
            return super().__call__(*args, guidance_scale=4.0, **kwargs)

    seen = []
    pipeline = Unscaled(**flux().components)
    assert ask({"prompt": "a cat"}, server=make_server(pipeline))[0] == 200 and seen == [None]


def test_random_seed_is_told_and_draws_the_picture_again() -> None:
    server = served()

    async def go():
        async with client_of(server) as client:
            one, other = [(await client.post(PATH, json={"prompt": "a cat"})).json() for _ in range(2)]
            again = (await client.post(PATH, json={"prompt": "a cat", "seed": one["data"][0]["seed"]})).json()
            return one, other, again

    one, other, again = run(go())
    assert one["data"] == again["data"] and one["data"] != other["data"] and one["size"] == "16x16"


def test_full_queue_is_429_and_clients_that_leave_free_their_place() -> None:
    entered, may_go = threading.Event(), threading.Event()

    class Slow(RowWise):
        def run(self, inputs, per_row):
            entered.set()
            assert may_go.wait(60)
            return super().run(inputs, per_row)

    server = served(max_batch_size=1, max_queue=1, max_n=1, batch_timeout=0.0, passes=Slow(stable_diffusion()))

    async def go():
        async with client_of(server) as client:
            body = {"prompt": "a cat", "num_inference_steps": 1}
            running = asyncio.create_task(client.post(PATH, json=body))
            await asyncio.to_thread(entered.wait, 60)
            waiting = asyncio.create_task(client.post(PATH, json=body))
            while server.batcher.load != (1, 1):
                await asyncio.sleep(0.01)
            full = await client.post(PATH, json=body)
            assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
            assert full.json()["error"]["code"] == "queue_full" and full.json()["error"]["type"] == "rate_limit_error"
            waiting.cancel()
            while server.batcher.load[0]:
                await asyncio.sleep(0.01)
            late = await client.post(PATH, json={**body, "deadline": 0.05})
            assert late.status_code == 504 and "in the queue" in late.json()["error"]["message"]
            may_go.set()
            assert (await running).status_code == 200
            return (await client.get("/metrics")).text

    text = run(go())
    assert 'rejections_total{reason="queue_full"} 1.0' in text and 'requests_total{outcome="deadline"} 1.0' in text


def test_a_disconnect_ends_the_run() -> None:
    """Through the raw ASGI interface, as a server would report it."""
    server = served(batch_timeout=0.0)
    body = json.dumps({"prompt": "a cat", "num_inference_steps": 100}).encode()

    async def go():
        async with client_of(server) as client:
            app, messages = client._transport.app, asyncio.Queue()
            scope = {
                "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": PATH,
                "raw_path": PATH.encode(), "query_string": b"", "scheme": "http", "server": ("testserver", 80),
                "headers": [(b"content-type", b"application/json"), (b"host", b"testserver")], "root_path": "",
                "client": ("somewhere", 1),
            }  # fmt: skip
            await messages.put({"type": "http.request", "body": body, "more_body": False})
            sent = []

            async def send(message):
                sent.append(message)

            task = asyncio.create_task(app(scope, messages.get, send))
            while server.batcher.load[1] == 0:
                await asyncio.sleep(0.005)
            await messages.put({"type": "http.disconnect"})
            await task
            while server.batcher.load != (0, 0):
                await asyncio.sleep(0.005)
            return sent, (await client.get("/metrics")).text

    sent, text = run(go())
    assert sent[0]["status"] == 499 and 'requests_total{outcome="disconnected"} 1.0' in text
    steps = next(line for line in text.splitlines() if line.startswith("cad_fast_batch_pictures_count"))
    assert float(steps.split()[1]) < 100


def test_failures_tell_nothing_of_the_inside() -> None:
    class Failing(RowWise):
        def run(self, inputs, per_row):
            raise RuntimeError("secret path /home/someone")

    status, answer, _ = ask({"prompt": "a cat"}, server=served(passes=Failing(stable_diffusion())))
    assert status == 500 and "secret" not in json.dumps(answer) and "req-" in answer["error"]["message"]


def test_pictures_by_url_are_bounded() -> None:
    server = served(keep_bytes=2000)

    async def go():
        async with client_of(server) as client:
            body = {"prompt": "a cat", "response_format": "url", "n": 4}
            urls = [entry["url"] for entry in (await client.post(PATH, json=body)).json()["data"]]
            files = [await client.get(url) for url in urls]
            assert len({url.rsplit("/", 1)[1] for url in urls}) == 4 and all(len(url) > 60 for url in urls)
            return files, client._transport.app.state.pictures

    files, store = run(go())
    codes = [file.status_code for file in files]
    assert codes == sorted(codes, reverse=True) and set(codes) == {200, 404}
    assert sum(len(file.content) for file in files if file.status_code == 200) == store.total_bytes <= 2000


def test_windows_in_either_order_and_edits_that_are_null() -> None:
    server, drawn = served(), []
    windows = [[1000, 300], [300, 1000], [300, 0], [0, 300]]

    async def go():
        async with client_of(server) as client:
            for edits in (*([{"name": "first", "window": window}] for window in windows), [], None):
                answer = await client.post(PATH, json={"prompt": "a cat", "seed": 7, "edits": edits})
                assert answer.status_code == 200, answer.text
                drawn.append(answer.json()["data"])

    run(go())
    assert drawn[0] == drawn[1] and drawn[2] == drawn[3] and drawn[4] == drawn[5]
    assert drawn[0] != drawn[2] and drawn[4] not in (drawn[0], drawn[2])


def test_no_admin_without_a_token() -> None:
    status, _, _ = ask(None, path="/v1/edits/first/unload", server=served())
    assert status in (404, 405)


def test_the_first_picture_is_of_a_size_that_is_served() -> None:
    server = served(warm_up=True, sizes=("8x8", "16x16"))
    shapes = []
    unet = stable_diffusion().unet

    def look(_, args, kwargs) -> None:
        sample = args[0] if args else kwargs["sample"]
        shapes.append(tuple(sample.shape[-2:]))

    handle = unet.register_forward_pre_hook(look, with_kwargs=True)
    try:
        server.start()
    finally:
        server.stop()
        handle.remove()
    assert set(shapes) == {(4, 4)}


def test_state_and_documents() -> None:
    server = served(warm_up=True)
    assert not server.ready and not server.alive

    async def go():
        async with client_of(server) as client:
            assert (await client.get("/health")).json() == {"status": "ok"}
            assert (await client.get("/ready")).json() == {"ready": True, "queued": 0, "running": 0}
            assert (await client.get("/v1/limits")).json()["sizes"] == ["16x16"]
            document = (await client.get("/openapi.json")).json()
            request = document["components"]["schemas"]["ImageRequest"]["properties"]
            assert {"prompt", "n", "size", "edits", "seed"} <= request.keys()
            assert request["prompt"]["maxLength"] == 1000
            page = await client.get("/")
            assert "text/html" in page.headers["content-type"] and "page.js" in page.text
            assert page.headers["content-security-policy"].startswith("default-src 'self'")
            assert (await client.get("/page.js")).status_code == 200
            for path in ("/nothing", "/../app.py", "/%2e%2e/app.py", "/v1/nothing"):
                assert (await client.get(path)).status_code == 404
            server.batcher.close()
            assert (await client.get("/ready")).status_code == 503
            assert (await client.get("/health")).status_code == 503
            assert (await client.post(PATH, json={"prompt": "a cat"})).status_code == 503

    run(go())


def test_a_warm_up_that_fails_ends_the_batcher(monkeypatch) -> None:
    pipeline = stable_diffusion()
    server = make_server(pipeline, warm_up=True)

    def broken(*args, **kwargs):
        raise RuntimeError("no picture can be drawn")

    monkeypatch.setattr(pipeline.unet, "forward", broken)
    with pytest.raises(RuntimeError):
        server.start()
    assert not server.alive and not server.ready


@pytest.mark.parametrize("name", PIPELINES)
def test_native_size(name) -> None:
    factory, arguments = PIPELINES[name]
    if "height" not in arguments:
        image = factory()("a cat", num_inference_steps=2, **arguments)[0][0]
        assert native_size(factory()) == f"{image.width}x{image.height}"
