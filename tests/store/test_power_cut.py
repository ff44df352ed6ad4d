"""S3: power cuts over commit, resume, adding a site, dropping a site, compaction and delete."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from store_disks import PowerCut, SimDisk
from store_workloads import COLUMNS, LATER, capture, wrong_rows

from interneuron.core.errors import CorruptStore, StoreError
from interneuron.store import Store
from interneuron.store.maintenance import compact, delete, drop_site

pytestmark = pytest.mark.usefixtures("unchecked")  # thousands of states: the type checks have their say elsewhere
PATH = "/s"
STATES = 20_000


@dataclass
class Tally:
    states: int = 0
    lost: int = 0
    wrong: int = 0
    unopened: int = 0
    unequal: int = 0
    examples: list[str] = field(default_factory=list)


def cut(start: Callable[[], SimDisk], work: Callable[[SimDisk], None], at: int) -> SimDisk | None:
    """Run `work` and cut the power before system call `at`; None when the work needs fewer calls."""
    disk = start()
    disk.calls, disk.cut_at, disk.trace = 0, at, []
    try:
        work(disk)
    except PowerCut:
        return disk
    return None


def judge(disk: SimDisk, before: int, acknowledged: int, tally: Tally, check: bool = True) -> None:
    """Open what the cut left and compare it with what was promised."""
    tally.states += 1
    try:
        store = Store(PATH, disk, check)
        if store.n_rows < max(before, acknowledged):
            tally.lost += 1
        try:
            tally.wrong += bool(wrong_rows(store))
        except CorruptStore:
            tally.lost += 1
    except CorruptStore as error:
        tally.unopened += 1
        tally.examples.append(str(error))
    except StoreError:  # no store there: right, unless rows were acknowledged
        tally.lost += bool(max(before, acknowledged))


def sweep(
    start: Callable[[], SimDisk],
    work: Callable[[SimDisk, list[int]], None],
    states: int,
    seed: int,
    before: int = 0,
    finish: Callable[[SimDisk], None] | None = None,
    final: dict[str, bytes] | None = None,
    check: bool = True,
) -> Tally:
    """Cut at every call in turn, look at several states of each, and finish the work from some of them."""
    tally, rng = Tally(), random.Random(seed)
    probe = start()
    probe.calls = 0
    work(probe, [])
    calls = probe.calls
    for at in range(calls):
        acks: list[int] = []
        disk = cut(start, lambda d, a=acks: work(d, a), at)
        assert disk is not None
        share = states // calls + (at < states % calls)
        for i in range(share):
            state = disk.after_crash(rng)
            judge(state, before, acks[-1] if acks else 0, tally, check)
            if finish is not None and i % 25 == 0:
                finish(state)
                tally.unequal += state.files() != final
    return tally


def fresh() -> SimDisk:
    return SimDisk()


def whole(columns: int = 1) -> Callable[[], SimDisk]:
    def make() -> SimDisk:
        disk = SimDisk()
        capture(PATH, disk)
        if columns == 2:
            capture(PATH, disk, (LATER,))
        return disk

    return make


def reference(*steps: Callable[[SimDisk], None]) -> dict[str, bytes]:
    disk = SimDisk()
    for step in steps:
        step(disk)
    return disk.files()


def record(disk: SimDisk, acks: list[int] | None = None) -> None:
    capture(PATH, disk, acknowledged=acks)


def add_site(disk: SimDisk, acks: list[int] | None = None) -> None:
    capture(PATH, disk, (LATER,))


def clean(tally: Tally, states: int) -> None:
    assert tally.states == states
    assert (tally.lost, tally.wrong, tally.unopened, tally.unequal) == (0, 0, 0, 0), tally


def test_cut_while_capturing_loses_nothing_acknowledged() -> None:
    clean(sweep(fresh, record, STATES * 2 // 5, 1, finish=record, final=reference(record)), STATES * 2 // 5)


def test_cut_while_resuming_after_a_cut() -> None:
    """The second cut comes while the capture goes on from what the first one left."""
    states, total = STATES // 5, Tally()
    rng, final = random.Random(2), reference(record)
    probe = fresh()
    record(probe)
    for i in range(10):
        acks: list[int] = []
        first = cut(fresh, lambda d, a=acks: capture(PATH, d, acknowledged=a), (i + 1) * probe.calls // 11)
        assert first is not None
        seed = rng.random()
        before = acks[-1] if acks else 0
        part = sweep(
            lambda f=first, s=seed: f.after_crash(random.Random(s)), record, states // 10, i, before, record, final
        )
        for name in ("states", "lost", "wrong", "unopened", "unequal"):
            setattr(total, name, getattr(total, name) + getattr(part, name))
        total.examples += part.examples
    clean(total, states)


def test_cut_while_adding_a_site() -> None:
    final = reference(record, add_site)
    clean(sweep(whole(), add_site, STATES // 5, 3, 108, add_site, final), STATES // 5)


def test_cut_while_dropping_a_site_or_compacting() -> None:
    def drop(disk: SimDisk, acks: list[int]) -> None:
        drop_site(PATH, COLUMNS[1].name, disk)
        compact(PATH, disk)

    clean(sweep(whole(2), drop, STATES // 10, 4, 108), STATES // 10)


def test_cut_while_deleting_leaves_all_rows_or_no_store() -> None:
    rng, start = random.Random(5), whole()
    probe = start()
    probe.calls = 0
    delete(PATH, probe)
    states = 0
    for at in range(probe.calls):
        disk = cut(start, lambda d: delete(PATH, d), at)
        assert disk is not None
        for _ in range(STATES // 10 // probe.calls + 1):
            state = disk.after_crash(rng)
            states += 1
            try:
                store = Store(PATH, state)
            except CorruptStore:
                raise
            except StoreError:
                record(state)  # the place can be used again
                store = Store(PATH, state)
            assert store.n_rows == 108
            assert wrong_rows(store) == 0
    assert states >= STATES // 10


@pytest.mark.parametrize("broken", [{"honest_fsync": False}, {"honest_dirs": False}])
def test_control_a_store_without_fsync_fails(broken: dict[str, bool]) -> None:
    tally = sweep(lambda: SimDisk(**broken), record, 600, 6)
    assert tally.lost > 0


def test_control_a_store_without_checksums_serves_wrong_rows() -> None:
    tally = sweep(lambda: SimDisk(honest_fsync=False), record, 600, 7, check=False)
    careful = sweep(lambda: SimDisk(honest_fsync=False), record, 600, 7, check=True)
    assert tally.wrong > 0
    assert careful.wrong == 0
