"""Thousands of mixed requests: neither memory nor edits stay behind."""

import asyncio
import copy
import gc
from pathlib import Path

import pytest
import torch
from greenlet import greenlet

from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.serving.edit_library import EditLibrary
from cad_fast.serving.engine.edited_passes import RowWise
from cad_fast.serving.server import Server
from cad_fast.serving.settings import Settings
from tests.pipelines import stable_diffusion
from tests.serving.common import TOKEN, client_of, random_edit, run
from tests.serving.test_isolation import EDITS, post, some_body

REQUESTS, BLOCK = 5000, 500


def resident() -> float:
    """MiB of memory that the process holds now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.slow
def test_soak(tmp_path) -> None:
    pipeline = copy.deepcopy(stable_diffusion())
    weights = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    for i in range(EDITS):
        random_edit(pipeline, f"edit{i}", i).save_pretrained(tmp_path / f"edit{i}")
    settings = Settings(warm_up=False, max_n=2, max_batch_size=16, max_queue=64, keep_bytes=2**18, steps=1)
    random_edit(pipeline, "spare", EDITS).save_pretrained(tmp_path / "spare")
    # Caches that are full soon: what grows after that is a leak.
    passes = RowWise(pipeline, cache_bytes=2**22)
    server = Server(pipeline, EditLibrary(tmp_path, pipeline), settings, passes, TOKEN)
    names = [name for name in server.library.names if name != "spare"]
    admin = {"authorization": f"Bearer {TOKEN}"}
    memory, answers, stores = [], {}, []

    async def one(client, number: int) -> None:
        body = some_body(number, names, 2)
        if number % 3 == 0:
            body["response_format"] = "url"
        if number % 17 == 0:
            body["edits"] = [{"name": "edit0", "strength": -3.9, "window": [999, 0]}]
        if number % 101 == 0:  # edits are read anew while they are in use, one comes and goes
            for path in (f"edit{number % EDITS}/load", "spare/unload", "spare/load"):
                assert (await client.post(f"/v1/edits/{path}", headers=admin)).status_code == 200
            body["edits"].append({"name": "spare"})
        answer = await post(client, body, 0.01 if number % 29 == 7 else None)
        code = 0 if answer is None else answer.status_code
        answers[code] = answers.get(code, 0) + 1

    async def go() -> None:
        async with client_of(server) as client:
            stores.append(client._transport.app.state.pictures)
            for start in range(0, REQUESTS, BLOCK):
                await asyncio.gather(*(one(client, number) for number in range(start, start + BLOCK)))
                while server.batcher.load != (0, 0):
                    await asyncio.sleep(0.01)
                gc.collect()
                memory.append(resident())

    run(go(), 3000)
    print(answers, [round(each) for each in memory])
    # 0: the client left; 404: the spare edit was out just then.
    assert set(answers) <= {0, 200, 400, 404} and answers[200] > 0.8 * REQUESTS and answers[400] == REQUESTS // 10
    assert len(passes.known) == 0, "closed"
    # The first blocks fill caches and the allocator's pools.
    assert max(memory[-3:]) < 1.03 * max(memory[2:5]), memory
    assert len(stores[0]) and stores[0].total_bytes <= 2**18
    assert all(torch.equal(value, weights[name]) for name, value in pipeline.unet.state_dict().items())
    assert all("forward" not in module.__dict__ for module in denoiser_of(pipeline).modules())
    assert not [each for each in gc.get_objects() if isinstance(each, greenlet) and not each.dead and each.parent]
