"""A bounded queue of pictures in which clients take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator

from .jobs import JobPicture


class FairQueue:
    """A queue of at most ``limit`` pictures.

    Clients take turns, one picture each. The pictures of one client keep their order.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"the queue's limit is {limit}, expected at least 1")
        self.limit = limit
        self._lanes: OrderedDict[str, deque[JobPicture]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[JobPicture]:
        return (picture for lane in self._lanes.values() for picture in lane)

    def offer(self, client: str, pictures: Iterable[JobPicture]) -> bool:
        """Queue all the pictures, or none if there is no place for all. Return whether they were queued."""
        listed = list(pictures)
        if self._size + len(listed) > self.limit:
            return False
        self._lanes.setdefault(client, deque()).extend(listed)
        self._size += len(listed)
        return True

    def pop(self) -> JobPicture:
        """Take out the next picture.

        Raises:
            IndexError: the queue is empty.
        """
        if not self._lanes:
            raise IndexError("the queue is empty")
        client, lane = self._lanes.popitem(last=False)
        picture = lane.popleft()
        if lane:
            self._lanes[client] = lane  # behind the others
        self._size -= 1
        return picture

    def drop_over(self) -> int:
        """Take out the pictures of jobs that have ended. Return how many there were."""
        before = self._size
        for client, lane in list(self._lanes.items()):
            left = deque(picture for picture in lane if not picture.ticket.over)
            self._size -= len(lane) - len(left)
            if left:
                self._lanes[client] = left
            else:
                del self._lanes[client]
        return before - self._size
