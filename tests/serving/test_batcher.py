"""The policy alone, with times that the tests make up."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpdeploy.serving.batcher import Batch, Batcher, Ticket
from mlpdeploy.serving.failures import QueueFullError

DELAY = 0.010


def batcher(queue_limit: int = 100) -> Batcher[Ticket]:
    made: Batcher[Ticket] = Batcher(DELAY, queue_limit)
    made.fixed_seconds = 1.0
    return made


def ticket(rows: int = 1, arrived: float = 0.0, key: str = "a", capacity: int = 8) -> Ticket:
    return Ticket(rows, key, capacity, arrived)


def spans(batch: Batch[Ticket]) -> list[tuple[int, int]]:
    return [(part.start, part.stop) for part in batch]


def finish(queue: Batcher[Ticket], batch: Batch[Ticket]) -> None:
    for part in batch:
        queue.end(part.ticket)


def crowded(count: int = 4) -> Batcher[Ticket]:
    """A queue that has just seen `count` clients at once, all answered."""
    queue = batcher()
    tickets = [ticket(capacity=count) for _ in range(count)]
    for one in tickets:
        queue.add(one)
    finish(queue, queue.take(0.0, 1, 0.0))
    return queue


def test_a_lone_client_never_waits() -> None:
    queue = batcher()
    for now in range(10):
        queue.add(ticket(arrived=now))
        batch = queue.take(now, 1, 0.0)
        assert spans(batch) == [(0, 1)]
        finish(queue, batch)


def test_a_group_of_clients_stays_together_and_no_longer_than_the_delay() -> None:
    queue = crowded(4)
    queue.add(ticket(arrived=1.0))
    assert queue.take(1.0, 1, 0.0) == []
    assert queue.wake_at(0.0) == 1.0 + DELAY
    for _ in range(3):
        queue.add(ticket(arrived=1.001))
    assert len(queue.take(1.001, 1, 0.0)) == 4  # all are back: no need to wait for the delay

    queue = crowded(4)
    queue.add(ticket(arrived=1.0))
    assert len(queue.take(1.0 + DELAY, 1, 0.0)) == 1


def test_a_crowd_is_forgotten() -> None:
    queue = crowded(4)
    waited = 0
    for now in range(1, 8):
        queue.add(ticket(arrived=now))
        waited += not queue.take(now, 1, 0.0)
        finish(queue, queue.take(now + DELAY, 1, 0.0))
        for left in list(queue.open):
            queue.end(left)
    assert 1 <= waited <= 3


def test_the_delay_counts_from_when_a_worker_could_take_it() -> None:
    queue = crowded(4)
    queue.add(ticket(arrived=1.0))
    assert queue.wake_at(5.0) == 5.0 + DELAY  # it came while all were busy; the others are about to come back
    assert queue.take(5.0, 1, 5.0) == []
    assert len(queue.take(5.0 + DELAY, 1, 5.0)) == 1


def test_nothing_waits_for_longer_than_a_batch_less_can_save() -> None:
    queue = crowded(4)
    queue.fixed_seconds = DELAY / 10
    queue.add(ticket(arrived=1.0))
    assert queue.wake_at(0.0) == 1.0 + DELAY / 10


def test_a_full_batch_goes_at_once_and_ahead() -> None:
    queue = crowded(20)
    for _ in range(7):
        queue.add(ticket(arrived=1.0))
    assert queue.take_ahead() == []
    queue.add(ticket(arrived=1.0))
    assert len(queue.take_ahead()) == 8
    assert queue.take(2.0, 1, 0.0) == [] and queue.waiting == 0


def test_idle_workers_share_what_waits() -> None:
    queue = batcher()
    for _ in range(6):
        queue.add(ticket())
    assert [len(queue.take(0.0, idle, 0.0)) for idle in (2, 1)] == [3, 3]


def test_a_large_request_is_split_and_fills_up_with_others() -> None:
    queue = batcher()
    large, small = ticket(19), ticket(2)
    queue.add(large)
    queue.add(small)
    taken = [queue.take(0.0, 1, 0.0) for _ in range(4)]
    assert [spans(batch) for batch in taken] == [[(0, 8)], [(8, 16)], [(16, 19), (0, 2)], []]
    assert [part.ticket for part in taken[2]] == [large, small]


def test_only_equal_shapes_share_a_batch_and_the_oldest_goes_first() -> None:
    queue = batcher()
    for index, key in enumerate("abab"):
        queue.add(ticket(arrived=index, key=key))
    assert [[part.ticket.key for part in queue.take(9.0, 1, 0.0)] for _ in range(2)] == [["a", "a"], ["b", "b"]]


def test_a_rare_shape_does_not_wait_for_a_common_one_to_pause() -> None:
    queue = batcher()
    now = 1.0
    queue.add(ticket(arrived=now, key="common"))
    queue.add(ticket(arrived=now, key="rare"))
    taken = []
    for _ in range(3):  # the worker is never idle, and more of the common shape comes than it can take
        now += 1.0
        for _ in range(8):
            queue.add(ticket(arrived=now, key="common"))
        taken.append({part.ticket.key for part in queue.take_ahead()})
    assert taken[:2] == [{"common"}, {"rare"}]


def test_the_queue_is_bounded_in_rows() -> None:
    queue = batcher(queue_limit=4)
    queue.add(ticket(4))
    with pytest.raises(QueueFullError, match=r"4 rows wait already, and at most 4 may"):
        queue.add(ticket())
    queue.take(0.0, 1, 0.0)
    queue.add(ticket(50))  # larger than the limit, but nothing waits
    assert queue.waiting == 50 and len(queue.open) == 2


def test_the_queue_takes_rows_up_to_its_limit() -> None:
    queue = batcher(queue_limit=4)
    queue.add(ticket(3))
    queue.add(ticket(1))
    assert queue.waiting == 4


def test_what_ends_leaves_the_queue() -> None:
    queue = batcher()
    gone, stays = ticket(12), ticket(1)
    queue.add(gone)
    queue.add(stays)
    queue.take(0.0, 1, 0.0)
    queue.end(gone)
    queue.end(gone)
    assert (queue.waiting, list(queue.open)) == (1, [stays])
    assert [part.ticket for part in queue.take(1.0, 1, 0.0)] == [stays]


def test_rows_of_a_dead_worker_go_first_and_alone() -> None:
    queue = batcher()
    tickets = [ticket() for _ in range(5)]
    for one in tickets[:3]:
        queue.add(one)
    running = queue.take(0.0, 1, 0.0)
    for one in tickets[3:]:
        queue.add(one)
    staged = queue.take(0.0, 1, 0.0)
    queue.end(tickets[1])
    queue.give_back(running, started=True)
    queue.give_back(staged, started=False)
    queue.add(ticket())
    assert queue.waiting == 5
    again = [queue.take(0.0, 1, 0.0), queue.take_ahead(), queue.take(0.0, 1, 0.0)]
    assert [[(part.ticket, part.attempts) for part in batch] for batch in again] == [
        [(tickets[0], 1)],
        [(tickets[2], 1)],
        [(tickets[3], 0), (tickets[4], 0)],
    ]
    assert queue.waiting == 1


def test_what_ends_leaves_what_a_dead_worker_gave_back() -> None:
    queue = batcher()
    one, other = ticket(), ticket()
    queue.add(one)
    queue.add(other)
    queue.give_back(queue.take(0.0, 1, 0.0), started=False)
    queue.end(one)
    assert queue.waiting == 1
    assert [part.ticket for part in queue.take(0.0, 1, 0.0)] == [other]
    queue.give_back([], started=True)
    assert queue.waiting == 0 and queue.take(1.0, 1, 0.0) == []


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_row_is_handed_out_once_unless_its_request_has_ended(data: st.DataObject) -> None:
    queue = batcher(queue_limit=30)
    now = 0.0
    open_tickets: list[Ticket] = []
    out: list[tuple[Batch[Ticket], bool]] = []
    seen: dict[Ticket, list[tuple[int, int]]] = {}
    for _ in range(data.draw(st.integers(1, 60))):
        action = data.draw(st.sampled_from(["add", "add", "take", "ahead", "end", "done", "die", "time"]))
        if action == "add":
            one = ticket(data.draw(st.integers(1, 20)), now, data.draw(st.sampled_from("ab")))
            try:
                queue.add(one)
            except QueueFullError:
                continue
            open_tickets.append(one)
            seen[one] = []
        elif action in ("take", "ahead"):
            batch = queue.take(now, data.draw(st.integers(1, 3)), 0.0) if action == "take" else queue.take_ahead()
            assert len({part.ticket.key for part in batch}) <= 1
            assert sum(part.rows for part in batch) <= 8
            assert not any(part.ticket.ended for part in batch)
            if batch:
                out.append((batch, data.draw(st.booleans())))
        elif action == "end" and open_tickets:
            queue.end(open_tickets.pop(data.draw(st.integers(0, len(open_tickets) - 1))))
        elif action in ("done", "die") and out:
            batch, started = out.pop(0)
            if action == "die":
                queue.give_back(batch, started=started)
            else:
                for part in batch:
                    seen[part.ticket].append((part.start, part.stop))
        now += 0.004
    while (batch := queue.take(now + 100, 1, 0.0)) or out:
        out += [(batch, True)] if batch else []
        for part in out.pop(0)[0]:
            seen[part.ticket].append((part.start, part.stop))
    assert queue.waiting == 0 and list(queue.open) == open_tickets
    for one in open_tickets:
        covered = sorted(seen[one])
        assert [start for start, _ in covered] == [0, *(stop for _, stop in covered[:-1])]
        assert covered[-1][1] == one.rows
