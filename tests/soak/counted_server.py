"""``cad-fast`` in this process, which on SIGUSR1 writes what it holds into the file that SOAK_COUNTS names.

Nothing else is changed, but that it ends with the process that started it. The counts are of objects of the server that
a leak would leave behind.
"""

import ctypes
import gc
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

from cad_fast.cli import main
from cad_fast.files import write_json

PR_SET_PDEATHSIG = 1  # of Linux' prctl
COUNTED = ("Edit", "PictureJob", "Ticket", "PipelineRun", "RequestResponseCycle")


def count(*_: object) -> None:
    """Write how many objects of each class there are."""
    gc.collect()
    names = Counter(type(each).__name__ for each in gc.get_objects())
    # Those that read files for the web page come and go, as many as there are requests at once.
    threads = len(os.listdir("/proc/self/task"))
    threads -= sum(thread.name.startswith("AnyIO worker") for thread in threading.enumerate())
    write_json(Path(os.environ["SOAK_COUNTS"]), {"threads": threads, **{name: names[name] for name in COUNTED}})


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGUSR1, count)
    sys.exit(main())
