"""The thread that loads a model leaves its helpers to the thread that runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNTING = """
import os, torch
from cad_fast.serving.engine.thread_pool import release_thread_pool
torch.set_num_threads(3)
count = lambda: len(os.listdir("/proc/self/task"))
x = torch.randn(1 << 20)
before = count()
torch.exp(x)
working = count()
done = release_thread_pool()
print(before, working, done, count(), torch.equal(torch.exp(x), x.exp()), count())
"""

SERVING = """
import asyncio, os, torch
from cad_fast.serving.engine.thread_pool import release_thread_pool
from tests.pipelines import stable_diffusion
from tests.serving.common import client_of, make_server
threads = lambda: set(os.listdir("/proc/self/task"))
server = make_server(stable_diffusion())
torch.set_num_threads(3)
before = threads()
torch.exp(torch.randn(1 << 20))
helpers = threads() - before
async def serve():
    async with client_of(server):
        print(len(helpers), server.alive, len(helpers & threads()), release_thread_pool())
asyncio.run(serve())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_helpers_end_and_come_back():
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    ran = subprocess.run([sys.executable, "-c", COUNTING], capture_output=True, text=True, env=environment, check=True)
    before, working, done, rested, equal, again = ran.stdout.split()
    if done == "False":
        pytest.skip("torch does not use GNU OpenMP here")
    assert int(working) == int(before) + 2
    assert int(rested) <= int(before)  # helpers of other libraries' pools, if any, are ended too
    assert equal == "True" and int(again) == int(rested) + 2


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_app_ends_the_helpers_of_the_thread_that_loaded_the_model():
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    root = Path(__file__).parents[3]
    ran = subprocess.run(
        [sys.executable, "-c", SERVING], capture_output=True, text=True, env=environment, check=True, cwd=root
    )
    helpers, alive, left, done = ran.stdout.split()
    if done == "False":
        pytest.skip("torch does not use GNU OpenMP here")
    assert int(helpers) >= 2 and alive == "True" and int(left) == 0
