"""Release of torch's thread pool, for a thread that loads a model which another thread runs.

Under GNU OpenMP every thread that runs torch has a pool of its own. If all pools together have more threads than there
are processors, waiting threads sleep between two operations instead of spinning. Small operations then wait longer for
their helpers than they compute (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html).
"""

from __future__ import annotations

import ctypes

OMP_PAUSE_SOFT = 1  # of the OpenMP 5.0 enumeration omp_pause_resource_t


def release_thread_pool() -> bool:
    """End the idle helpers of the calling thread. They come back when it next needs them.

    Returns:
        Whether they were ended. False if torch uses another runtime than GNU OpenMP, or inside a parallel region.
    """
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if "/libgomp" in line}
    except OSError:
        return False
    pauses = [getattr(ctypes.CDLL(path), "omp_pause_resource_all", None) for path in paths]
    # Older than GCC 9, it has no such call.
    done = [pause(OMP_PAUSE_SOFT) == 0 for pause in pauses if pause is not None]
    return bool(done) and all(done)
