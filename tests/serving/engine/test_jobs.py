"""Windows of timesteps in either order, and tickets that end once."""

import pytest
from PIL import Image

from cad_fast.serving.engine.jobs import DeadlineExceeded, PictureJob, RequestedEdit, Ticket, timestep_window
from tests.pipelines import stable_diffusion
from tests.serving.common import random_edit


@pytest.mark.parametrize("bounds", [(1000, 300), (300, 1000), [1000, 300]])
def test_windows_are_kept_as_lowest_and_highest(bounds) -> None:
    assert timestep_window(bounds) == (300, 1000)
    use = RequestedEdit(random_edit(stable_diffusion(), "edit", 1), window=bounds)
    assert use.window == (300, 1000) and use.key == ("edit", 1.0, (300, 1000))


@pytest.mark.parametrize("bounds", [(), (5,), (1, 2, 3)])
def test_windows_have_two_bounds(bounds) -> None:
    with pytest.raises(ValueError, match=f"has {len(bounds)} bounds, expected 2"):
        timestep_window(bounds)


def test_a_ticket_ends_once() -> None:
    ticket, image = Ticket(PictureJob("job", "a cat", n=2), lambda: None), Image.new("RGB", (1, 1))
    ticket.drawn(ticket.pictures[1], image)
    assert not ticket.over
    ticket.expire()
    ticket.end(RuntimeError("too late"))
    ticket.drawn(ticket.pictures[0], image)
    assert ticket.over and [str(picture) for picture in ticket.pictures] == ["job[0]", "job[1]"]
    with pytest.raises(DeadlineExceeded, match="the deadline passed while the request was in the queue"):
        ticket.future.result(0)
