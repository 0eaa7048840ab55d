"""One line of figures: ours and the peers, as ratios to the dense call and to the counted floor, beside the bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from cad_fast.ops.registry import OPS

from .. import roofline
from . import clock
from .clock import Call
from .figures_names import AUTO, DENSE, FLOOR
from .worker import Worker

SECONDS = 0.06


@dataclass(frozen=True)
class Contender:
    """Calls that do the same on different inputs."""

    calls: Sequence[Call]
    host: bool = False
    """Whether the host's own time is taken too."""


class Bar(NamedTuple):
    """What one time divided by another has to be: at most `limit`, or at least with `least`."""

    text: str
    numerator: str
    denominator: str
    limit: float
    least: bool = False

    def value(self, us: Mapping[str, float]) -> float | None:
        """The ratio; None where one of the two was not measured."""
        if self.numerator not in us or not us.get(self.denominator):
            return None
        return us[self.numerator] / us[self.denominator]

    def met(self, us: Mapping[str, float]) -> bool | None:
        value = self.value(us)
        if value is None:
            return None
        return value >= self.limit if self.least else value <= self.limit


def at_most(limit: float, peer: str) -> Bar:
    return Bar(f"<= {limit:g} x {peer}", AUTO, peer, limit)


def faster_than(peer: str, limit: float) -> Bar:
    return Bar(f">= {limit:g} x faster than {peer}", peer, AUTO, limit, least=True)


def device_of(worker: Worker) -> roofline.Device:
    """The entry of the roofline for the device; a dry run takes any, as its figures mean nothing.

    Raises:
        LookupError: There is none.
    """
    if worker.dry:
        return roofline.DEVICES[0]
    name = torch.cuda.get_device_name(worker.device)
    for device in roofline.DEVICES:
        if device.name.split()[0] in name:
            return device
    raise LookupError(f"bench.roofline does not know {name}")


def floor_us(worker: Worker, works: Sequence[roofline.Work]) -> float | None:
    """The counted floor in microseconds; None for a device that the roofline does not know."""
    try:
        return 1e6 * roofline.total(works, device_of(worker), "bfloat16")
    except LookupError:
        return None


def ours(worker: Worker, op: str, call: Any, sets: Sequence[Any]) -> dict[str, Contender]:
    """Our operator by the automatic choice and by every backend; `call(inputs, backend)` runs it."""
    names = {AUTO: None, **{backend: backend for backend in worker.backends(op)}}
    return {
        name: Contender([lambda inputs=inputs, backend=backend: call(inputs, backend) for inputs in sets], host=True)
        for name, backend in names.items()
    }


def measure(
    worker: Worker,
    op: str,
    case: str,
    contenders: Mapping[str, Contender],
    floor: float | None,
    bars: Sequence[Bar],
    **facts: Any,
) -> None:
    """Time all contenders and write the line. In a warming process ours run once instead."""
    if worker.warming:
        for name, contender in contenders.items():
            if contender.host and name != DENSE:
                _warm(worker, contender)
        return
    us: dict[str, float] = {} if floor is None else {FLOOR: floor}
    marks: dict[str, str] = {}
    host: dict[str, float] = {}
    notes: dict[str, str] = {}
    chosen = ""
    for name, contender in contenders.items():
        before = dict(OPS[op].runs)
        try:
            time = clock.gpu_time(worker, contender.calls, SECONDS)
            us[name], marks[name] = time.us, time.mark
            if time.why:
                notes[name] = time.why
            if contender.host:
                host[name] = clock.host_time(worker, contender.calls[0], time.us)
        except Exception as error:
            notes[name] = f"{type(error).__name__}: {error}"[:400]
            if not worker.alive():
                # What is there already is written before the process ends.
                _put(worker, op, case, us, marks, host, notes, bars, chosen, facts)
                raise
        if name == AUTO:
            chosen = ", ".join(b for b, runs in OPS[op].runs.items() if runs > before.get(b, 0))
    _put(worker, op, case, us, marks, host, notes, bars, chosen, facts)


def _put(
    worker: Worker,
    op: str,
    case: str,
    us: dict[str, float],
    marks: dict[str, str],
    host: dict[str, float],
    notes: dict[str, str],
    bars: Sequence[Bar],
    chosen: str,
    facts: dict[str, Any],
) -> None:
    judged = [{"bar": bar.text, "value": bar.value(us), "met": bar.met(us)} for bar in bars]
    worker.put(op=op, case=case, us=us, marks=marks, host_us=host, notes=notes, bars=judged, chosen=chosen, **facts)


def _warm(worker: Worker, contender: Contender) -> None:
    try:
        contender.calls[0]()
        worker.synchronize()
    except Exception as error:  # it will be said when it is measured
        print(f"warming: {type(error).__name__}: {error}")
        if not worker.alive():
            raise
