"""``python -m bench.gpu --output DIR --budget SECONDS``: whether the operators are right on a GPU, and how fast.

Everything runs in processes of its own, and what one of them finds is written as it comes: a crash, a hang or a wrong
value is a line of the report, and the others go on. First come the checks, the tests and the compilation of all
kernels, all at once; then the times, one section after the other, with nothing beside them. A run that is cut short
has something of everything.

Written into DIR: ``gpu.jsonl``, a line per finding; ``gpu.md``, tables of them; ``tests.jsonl``, a line per test;
``log.txt``, what the processes said.
"""

import time

BEGIN = time.monotonic()
"""The budget counts from here on, before anything else is imported."""
