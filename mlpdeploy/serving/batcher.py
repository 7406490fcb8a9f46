"""When rows go to a worker, and together with which others. Policy only: no input or output, no clock, no numpy.

A worker that is idle takes what waits at once, unless waiting a little can fill the batch: when more requests were open
lately than are open now, the missing ones are probably on their way back. So one client never waits for company, and a
group of clients that call in a loop stays together. What a wrong guess costs is bounded twice: by `max_delay`, and by
the fixed cost of a batch, which is all that a batch less can save; where rows cost the same alone and together, as on a
CPU, hardly anything is ever held back. While all workers are busy, rows gather by themselves; a batch that is full then
is handed over ahead, so that the worker finds it when it is done.

Only rows of one shape share a batch. A request may be spread over several. Rows that were with a worker when it died
are handed out again alone, so that rows that kill a worker take no others with them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mlpdeploy.serving.failures import QueueFullError

_EPOCHS = 3  # "lately" means the last so many batches


@dataclass(eq=False)
class Ticket:
    """A request, as the batcher sees it.

    Attributes:
        rows: how many it has.
        key: rows with equal keys may share a batch.
        capacity: rows of this key that a batch may hold.
        arrived: seconds, on the clock that `now` is read from.
        taken: rows that were handed out.
        ended: whether it was answered, failed or cancelled; its rows are of no use then.
    """

    rows: int
    key: Hashable
    capacity: int
    arrived: float
    taken: int = 0
    ended: bool = False


T = TypeVar("T", bound=Ticket)


@dataclass(frozen=True, eq=False)
class Part(Generic[T]):
    """Rows start..stop of a request in one batch; `attempts`: workers that died while they computed them."""

    ticket: T
    start: int
    stop: int
    attempts: int = 0

    @property
    def rows(self) -> int:
        return self.stop - self.start


Batch = list[Part[T]]


@dataclass
class _Group(Generic[T]):
    """The requests that wait and have one key, the oldest first; a dict because any of them may leave."""

    tickets: dict[T, None] = field(default_factory=dict)
    rows: int = 0

    @property
    def first(self) -> T:
        return next(iter(self.tickets))


class Batcher(Generic[T]):
    """The queue of one model.

    Attributes:
        waiting: rows that are queued.
        open: requests that have not ended, queued or not; a dict for its order.
        fixed_seconds: what a batch costs to compute beside what each of its rows does.
    """

    def __init__(self, max_delay: float, queue_limit: int) -> None:
        self.waiting = 0
        self.open: dict[T, None] = {}
        self.fixed_seconds = 0.0
        self._max_delay, self._queue_limit = max_delay, queue_limit
        self._groups: dict[Hashable, _Group[T]] = {}
        self._returned: deque[Batch[T]] = deque()
        self._peaks: deque[int] = deque([0], _EPOCHS)

    def add(self, ticket: T) -> None:
        """Queue a request.

        Raises:
            QueueFullError: too many rows wait. A request that is larger than the limit is taken by an empty queue.
        """
        if self.waiting and self.waiting + ticket.rows > self._queue_limit:
            raise QueueFullError(
                f"{self.waiting} rows wait already, and at most {self._queue_limit} may", fix="try again later"
            )
        group = self._groups.setdefault(ticket.key, _Group())
        group.tickets[ticket] = None
        group.rows += ticket.rows
        self.waiting += ticket.rows
        self.open[ticket] = None
        self._peaks[-1] = max(self._peaks[-1], len(self.open))

    def end(self, ticket: T) -> None:
        """Forget a request that was answered, failed or cancelled; what it has in the queue leaves it.

        One that was refused or has ended already is no matter.
        """
        if ticket not in self.open:
            return
        ticket.ended = True
        del self.open[ticket]
        self._leave(ticket, ticket.rows - ticket.taken)
        for batch in [batch for batch in self._returned if any(part.ticket is ticket for part in batch)]:
            self.waiting -= sum(part.rows for part in batch if part.ticket is ticket)
            batch[:] = [part for part in batch if part.ticket is not ticket]
            if not batch:
                self._returned.remove(batch)

    def give_back(self, batch: Batch[T], *, started: bool) -> None:
        """Take back what a dead worker held, to be handed out first: each part alone if it may have been the cause."""
        alive = [part for part in batch if not part.ticket.ended]
        if started:
            batches = [[Part(part.ticket, part.start, part.stop, part.attempts + 1)] for part in alive]
        else:
            batches = [alive] if alive else []
        self._returned.extend(batches)
        self.waiting += sum(part.rows for part in alive)

    def take(self, now: float, idle: int, since: float) -> Batch[T]:
        """Return the next batch for one of `idle` workers that are idle; an empty one means that there is none yet.

        Args:
            now: seconds, on the tickets' clock.
            idle: how many workers are.
            since: when the first of them became so.
        """
        if batch := self._take_returned():
            return batch
        together = len(self.open) >= max(self._peaks)
        for group in self._by_age():
            if together or self._full(group) or now >= self._due(group, since):
                return self._take(group, -(-group.rows // idle))
        return []

    def take_ahead(self) -> Batch[T]:
        """Return the next batch for a worker that is busy, which takes none before one is full.

        Then the oldest rows go all the same: a rare shape must not wait for as long as a common one fills batches.
        """
        if batch := self._take_returned():
            return batch
        groups = self._by_age()
        return self._take(groups[0], groups[0].rows) if any(map(self._full, groups)) else []

    def wake_at(self, since: float) -> float | None:
        """Return when `take` may give a batch that it does not give before; None when nothing waits."""
        return min((self._due(group, since) for group in self._groups.values()), default=None)

    def _due(self, group: _Group[T], since: float) -> float:
        """Return when a group has been held back long enough: not when it came, but since a worker could take it."""
        return max(group.first.arrived, since) + min(self._max_delay, self.fixed_seconds)

    def _by_age(self) -> list[_Group[T]]:
        return sorted(self._groups.values(), key=lambda group: group.first.arrived)

    @staticmethod
    def _full(group: _Group[T]) -> bool:
        return group.rows >= group.first.capacity

    def _take_returned(self) -> Batch[T]:
        if not self._returned:
            return []
        batch = self._returned.popleft()
        self.waiting -= sum(part.rows for part in batch)
        return batch

    def _take(self, group: _Group[T], rows: int) -> Batch[T]:
        """Return up to `rows` rows of a group, no more than a batch may hold, the oldest request's first."""
        left = min(rows, group.first.capacity)
        batch: Batch[T] = []
        for ticket in list(group.tickets):
            part = Part(ticket, ticket.taken, min(ticket.rows, ticket.taken + left))
            batch.append(part)
            left -= part.rows
            ticket.taken = part.stop
            self._leave(ticket, part.rows)
            if not left:
                break
        self._peaks.append(len(self.open))
        return batch

    def _leave(self, ticket: T, rows: int) -> None:
        """Take rows of a request out of its group, and the request too when no rows of it are left or it has ended."""
        group = self._groups.get(ticket.key)
        if group is None or ticket not in group.tickets:
            return
        group.rows -= rows
        self.waiting -= rows
        if ticket.ended or ticket.taken == ticket.rows:
            del group.tickets[ticket]
        if not group.tickets:
            del self._groups[ticket.key]
