"""The thread that loads a model leaves its helpers to the thread that runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNTING = """
import os, torch
from cad_fast.serving.thread_pool import release_thread_pool
torch.set_num_threads(3)
count = lambda: len(os.listdir("/proc/self/task"))
x = torch.randn(1 << 20)
before = count()
torch.exp(x)
working = count()
done = release_thread_pool()
print(before, working, done, count(), torch.equal(torch.exp(x), x.exp()), count())
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
