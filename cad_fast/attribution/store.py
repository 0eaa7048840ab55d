"""The state of an unfinished attribution run in one SQLite file, so that a run that was stopped can go on.

Methods of ablations write a row per ablation and concept as soon as it is measured. Methods of gradients write their
sums, in pieces, every so often. Each write is one transaction of a write-ahead log: whatever ends the process, the file
holds the state before or after it, never between. SQLite's REAL is the double that was put in, bit for bit.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import parse_json, require_writable_folder
from ..recording.data import Recording

STATE_NAME = "attribution_state.sqlite"
SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE ablations (
    number INTEGER, concept INTEGER, j REAL NOT NULL, PRIMARY KEY (number, concept)
) WITHOUT ROWID;
CREATE TABLE sums (
    name TEXT, piece INTEGER, dtype TEXT NOT NULL, shape TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (name, piece)
);
"""
# SQLite takes blobs of up to a gigabyte.
PIECE_BYTES = 2**26
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float64, torch.int64)}


class RunState:
    """The state of a run. ``finish`` throws it away at the end.

    ``done`` passes are in ``sums``; ``measured`` has J per ablation.

    Args:
        folder: Where the file is. None keeps the state in memory.
        settings: What the result depends on, as JSON.
        resume: Whether to go on with what lies in the folder.
        interval: Sums are written at most every so many seconds. Ablations are written at once.

    Raises:
        FileExistsError: An unfinished run lies in the folder and ``resume`` is False.
        RuntimeError: Another process is running it.
        ValueError: It was started with other settings, which the message names, or the file is damaged.
    """

    def __init__(
        self, folder: str | Path | None, settings: Mapping[str, Any], *, resume: bool, interval: float = 60.0
    ) -> None:
        self.settings = json.loads(json.dumps(dict(settings)))
        self.interval = interval
        self.path = require_writable_folder(folder) / STATE_NAME if folder is not None else None
        self.done = 0
        self.sums: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self.measured: dict[int, list[float]] = {}
        self._saved_at = time.monotonic()
        self._database: sqlite3.Connection | None = None
        if self.path is None:
            return
        if self.path.exists() and not resume:
            with self._errors():
                self._require_idle()
            raise FileExistsError(
                f"{self.path} holds an unfinished run: pass resume=True to go on with it, or delete it"
            )
        try:
            with self._errors():
                self._open()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into what they mean here."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise RuntimeError(f"{self.path} is in use: another process is running this attribution") from error
            if any(reason in str(error) for reason in ("is full", "readonly", "unable to open", "disk I/O")):
                raise OSError(f"{self.path} cannot be read and written: {error}") from error
            raise ValueError(f"{self.path} is damaged ({error}): delete it to start anew") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is damaged ({error}): delete it to start anew") from error

    def _require_idle(self) -> None:
        """Raise SQLite's error if another process is running the attribution whose state this is."""
        database = sqlite3.connect(self.path, timeout=1.0)  # type: ignore[arg-type]  # there is a path
        try:
            database.execute("SELECT count(*) FROM sqlite_master")
        finally:
            database.close()

    def _open(self) -> None:
        assert self.path is not None
        self._database = sqlite3.connect(self.path, timeout=1.0, isolation_level=None)
        run = self._database.execute
        # Held until the end, so that two processes cannot run the same attribution.
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")
        with self._transaction():
            version = run("PRAGMA user_version").fetchone()[0]
            tables = {name for (name,) in run("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if version == 0 and not tables:  # new, or ended before its first transaction
                for statement in _SCHEMA.split(";\n"):
                    run(statement)
                run("INSERT INTO run VALUES ('settings', ?)", (json.dumps(self.settings),))
                run(f"PRAGMA user_version = {SCHEMA_VERSION:d}")
                return
        if version != SCHEMA_VERSION:
            raise ValueError(f"{self.path} has format {version}, this version of cad_fast reads {SCHEMA_VERSION}")
        (verdict,) = run("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            reason = " ".join(verdict.split())
            raise ValueError(f"{self.path} is damaged ({reason}): delete it to start anew")
        self._read()

    def _read(self) -> None:
        assert self._database is not None
        run = self._database.execute
        values = dict(run("SELECT key, value FROM run"))
        with self._damage("its run"):
            theirs = parse_json(values["settings"], "settings")
            self.done = int(values.get("done", 0))
            if not isinstance(theirs, dict) or not 0 <= self.done < 2**31:
                raise ValueError("the settings are no object, or the number of passes is none")
        self._require_same_settings(theirs)
        for number, concept, j in run("SELECT number, concept, j FROM ablations ORDER BY number, concept"):
            with self._damage(f"J of ablation {number!r:.40}"):
                of_one = self.measured.setdefault(_counted(number), [])
                if _counted(concept) != len(of_one) or not isinstance(j, float):
                    raise ValueError("a concept is missing, or J is no number")
                of_one.append(j)
        with self._damage("J"):
            if len({len(of_one) for of_one in self.measured.values()}) > 1:
                raise ValueError("ablations have different numbers of concepts")
        pieces: dict[str, tuple[str, str, list[bytes]]] = {}
        for name, dtype, shape, data in run("SELECT name, dtype, shape, data FROM sums ORDER BY name, piece"):
            with self._damage(f"sums of {name!r:.40}"):
                pieces.setdefault(name, (dtype, shape, []))[2].append(data)
        for name, (dtype, shape, parts) in pieces.items():
            with self._damage(f"sums of {name!r:.40}"):
                data = bytearray(b"".join(parts))
                flat = torch.frombuffer(data, dtype=_DTYPES[dtype]) if data else torch.zeros(0, dtype=_DTYPES[dtype])
                self.sums[str(name)] = flat.reshape([_counted(side) for side in parse_json(shape, "a shape")])
        self._versions = {name: tensor._version for name, tensor in self.sums.items()}

    @contextmanager
    def _damage(self, place: str) -> Iterator[None]:
        """Turn what reading a value that cannot be there raises into an error that names the file."""
        try:
            yield
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"{self.path} is damaged ({place}): delete it to start anew") from error

    def _require_same_settings(self, theirs: Mapping[str, Any]) -> None:
        if changes := _changes(theirs, self.settings):
            raise ValueError(f"{self.path} was started with other settings ({'; '.join(changes)})")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        assert self._database is not None
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def add(self, first: int, values: Tensor) -> None:
        """Write J, float64 [concepts, k], of the ablations from number ``first`` on."""
        rows = [
            (first + place, concept, j)
            for place, of_all in enumerate(values.T.tolist())
            for concept, j in enumerate(of_all)
        ]
        if self._database is not None:
            with self._errors(), self._transaction():
                self._database.executemany("INSERT INTO ablations VALUES (?, ?, ?)", rows)
        for number, _, j in rows:
            self.measured.setdefault(number, []).append(j)

    def update(self, done: int, sums: Mapping[str, Tensor]) -> None:
        """Note that ``done`` passes are in ``sums``. They are written when the last save is long enough ago."""
        self.done, self.sums = done, dict(sums)
        self._versions = {name: tensor._version for name, tensor in sums.items()}
        if self.path is not None and time.monotonic() - self._saved_at >= self.interval:
            self.save()

    def save(self) -> None:
        """Write the sums now. Where a pass is being added to them in place just then, what was written last stays."""
        if self._database is None or self._versions != {name: tensor._version for name, tensor in self.sums.items()}:
            return
        with self._errors(), self._transaction():
            self._database.execute("INSERT OR REPLACE INTO run VALUES ('done', ?)", (str(self.done),))
            self._database.execute("DELETE FROM sums")
            for name, tensor in self.sums.items():
                flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                about = (str(tensor.dtype), json.dumps(list(tensor.shape)))
                for piece, start in enumerate(range(0, max(1, len(flat)), PIECE_BYTES)):
                    data = flat[start : start + PIECE_BYTES].data
                    self._database.execute("INSERT INTO sums VALUES (?, ?, ?, ?, ?)", (name, piece, *about, data))
        self._saved_at = time.monotonic()

    def release(self) -> None:
        """Let go of the sums in memory, once all passes are in them; what was written of them stays until the end."""
        self.sums = {}

    def how_to_resume(self) -> str:
        """Return what to tell the person who stopped the run."""
        if self.path is None:
            return "stopped; without output_dir nothing was kept"
        return f"stopped; {self.path} keeps what was done: run the same again with resume=True (--resume) to go on"

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def finish(self) -> None:
        """Remove the state, when the run's result has been saved."""
        self.close()
        if self.path is not None:
            remove_state(self.path.parent)


def remove_state(folder: Path) -> None:
    """Remove the state of a run whose result has been saved."""
    for ending in ("", "-journal", "-wal", "-shm"):
        (folder / f"{STATE_NAME}{ending}").unlink(missing_ok=True)


@contextmanager
def resumable(folder: str | Path | None, settings: Mapping[str, Any], *, resume: bool) -> Iterator[RunState]:
    """Hold a run's state. Ctrl-C inside saves it and says how to go on; any other error closes it."""
    state = RunState(folder, settings, resume=resume)
    try:
        yield state
    except KeyboardInterrupt:
        state.save()
        state.close()
        raise KeyboardInterrupt(state.how_to_resume()) from None
    except BaseException:
        state.close()
        raise


def _counted(value: Any) -> int:
    """``value``, a whole number from 0 on. Raises ValueError."""
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"{value!r:.40} is no whole number from 0 on")
    return value


def _changes(then: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> list[str]:
    """Return in words what differs, key by key, and within a mapping by its keys."""
    changes = []
    for key in sorted(then.keys() | now.keys()):
        before, after, name = then.get(key), now.get(key), f"{above}{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += _changes(before, after, f"{name}.")
        elif before != after:
            changes.append(f"{name}: {before!r} then, {after!r} now")
    return changes


def recording_settings(recording: Recording) -> dict[str, Any]:
    """Return, as JSON, what a recording was made with beside what the scores say of it. A run goes on with no other."""
    return {
        "scheduler": recording.scheduler_config,
        "sample_shape": list(recording.calls[0].sample.shape[1:]),
        "dtype": str(recording.calls[0].sample.dtype),
        "row_kwargs": recording.row_kwargs,
    }
