"""The queue against a slow model of itself, on random sequences of what can happen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cad_fast.serving.engine.fair_queue import FairQueue
from cad_fast.serving.engine.jobs import PictureJob, Ticket

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.sampled_from("abc"), st.integers(1, 4)),
        st.tuples(st.just("pop")),
        st.tuples(st.just("give up"), st.integers(0, 30)),
    ),
    max_size=40,
)


@given(ACTIONS, st.integers(1, 6))
def test_against_a_model(actions, limit) -> None:
    queue, tickets = FairQueue(limit), []
    waiting = []  # (client, picture), in the order they came
    turns: list[str] = []  # clients that have something waiting, the next one first
    for action in actions:
        if action[0] == "offer":
            _, client, n = action
            ticket = Ticket(PictureJob(str(len(tickets)), "", n=n, client=client), lambda: None)
            fits = len(waiting) + n <= limit
            assert queue.offer(client, ticket.pictures) is fits
            if fits:
                tickets.append(ticket)
                waiting += [(client, picture) for picture in ticket.pictures]
                turns += [client] if client not in turns else []
        elif action[0] == "pop" and waiting:
            client = turns.pop(0)
            expected = next(entry for entry in waiting if entry[0] == client)
            waiting.remove(expected)
            turns += [client] if any(owner == client for owner, _ in waiting) else []
            assert queue.pop() is expected[1]
        elif action[0] == "pop":
            with pytest.raises(IndexError):
                queue.pop()
        elif action[1] < len(tickets):
            tickets[action[1]].end(RuntimeError("given up"))
            queue.drop_over()
            waiting = [entry for entry in waiting if not entry[1].ticket.over]
            turns = [client for client in turns if any(owner == client for owner, _ in waiting)]
        assert len(queue) == len(waiting) == len(list(queue))


def test_limit() -> None:
    with pytest.raises(ValueError, match="limit is 0"):
        FairQueue(0)
