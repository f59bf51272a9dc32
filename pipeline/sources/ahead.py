"""Reading before being asked: objects arrive, and series are listed, in the order in which they will be wanted."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from threading import Lock

from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import ObjectRef


@dataclass(slots=True, eq=False)
class _Group:
    """Objects that will be asked for one after another, by location; ``find`` names them where nobody has yet."""

    refs: dict[str, ObjectRef] = field(default_factory=dict)
    find: Callable[[], Sequence[ObjectRef]] | None = None


class ReadAhead:
    """Reads objects before they are asked for, in the order in which they will be.

    At most ``requests`` at once, and no more than ``ahead_bytes`` read or being read and not yet taken (one object is
    always allowed). Series whose objects nobody knows yet are listed ahead by the same readers, no more of them than
    keeps the readers busy. For one consumer: :meth:`take` is called from one thread at a time; the rest from any.
    """

    def __init__(self, read: Callable[[ObjectRef], bytes | Reject], requests: int, ahead_bytes: int) -> None:
        self._read = read
        self._requests = requests
        self._free = ahead_bytes
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._busy = 0
        self._finding: set[_Group] = set()
        self._groups: OrderedDict[str, _Group] = OrderedDict()
        self._unfound: deque[str] = deque()
        self._waiting: dict[str, _Group] = {}  # by the location of an object
        self._flying: dict[str, tuple[int, Future[bytes | Reject]]] = {}
        self._urgent: deque[Callable[[], None]] = deque()
        self._names = count()

    def expect(self, refs: Sequence[ObjectRef], *, first: bool = False, name: str | None = None) -> None:
        """Add what will be asked for, after what is expected already, or before it. What is being read stays so.

        ``name``: of the series that :meth:`expect_series` was told of, and that need not be listed for this any more.
        """
        with self._lock:
            if name is not None and (known := self._groups.get(name)) is not None and known.find is not None:
                del self._groups[name]
            if first:
                for ref in refs:
                    self._unqueue(ref.location)
            group = _Group()
            key = f"\t{next(self._names)}"
            self._groups[key] = group
            self._groups.move_to_end(key, last=not first)
            self._enqueue(group, refs)
            self._fill()

    def expect_series(self, name: str, find: Callable[[], Sequence[ObjectRef]]) -> None:
        """Add a series whose objects ``find`` names; it is called by a reader, and again by nobody."""
        with self._lock:
            if name not in self._groups:
                self._groups[name] = _Group(find=find)
                self._unfound.append(name)
                self._fill()

    def forget(self, refs: Sequence[ObjectRef]) -> None:
        """Take back that these will be asked for."""
        with self._lock:
            for ref in refs:
                self._unqueue(ref.location)
                self._drop(ref.location)
            self._fill()

    def take(self, ref: ObjectRef) -> bytes | Reject:
        """The object's bytes: as soon as they are there where they were expected, else read now."""
        with self._lock:
            if ref.location in self._waiting:  # its turn has come, whether there is room or not
                self._unqueue(ref.location)
                self._urgent.append(self._launch(ref))
                self._fill()
            flight = self._flying.get(ref.location)
        if flight is None:
            return self._read(ref)
        try:
            return flight[1].result()
        except CancelledError:  # closed by another thread
            return Reject("fetch", "fetch_failed", "stopped")
        finally:
            with self._lock:
                self._drop(ref.location)
                self._fill()

    def close(self, *, wait: bool = True) -> None:
        """Forget everything; what is being read is dropped, and waited for unless told otherwise."""
        with self._lock:
            self._groups.clear()
            self._unfound.clear()
            self._waiting.clear()
            self._urgent.clear()
            for location in list(self._flying):
                self._drop(location)
            self._finding.clear()
            self._busy = 0
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=wait, cancel_futures=True)

    # all below with the lock held, but for what the readers do

    def _enqueue(self, group: _Group, refs: Sequence[ObjectRef]) -> None:
        for ref in refs:
            if ref.location not in self._flying and ref.location not in self._waiting:
                group.refs[ref.location] = ref
                self._waiting[ref.location] = group

    def _unqueue(self, location: str) -> None:
        group = self._waiting.pop(location, None)
        if group is not None:
            del group.refs[location]

    def _drop(self, location: str) -> None:
        if location in self._flying:
            size, future = self._flying.pop(location)
            future.cancel()
            self._free += size

    def _fill(self) -> None:
        while self._busy < self._requests and (job := self._next()) is not None:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._requests, thread_name_prefix="lumid-read")
            self._busy += 1
            self._pool.submit(self._run, job, self._pool)

    def _next(self) -> Callable[[], None] | None:
        """What a reader does next: what is waited for, then listings, so that there are objects to read, then those."""
        if self._urgent:
            return self._urgent.popleft()
        return self._next_series() or self._next_object()

    def _next_series(self) -> Callable[[], None] | None:
        """The next series to list, where the objects that are known might not keep the readers busy."""
        if len(self._finding) >= max(1, self._requests // 2) or len(self._waiting) >= 4 * self._requests:
            return None
        while self._unfound:
            name = self._unfound.popleft()
            group = self._groups.get(name)
            if group is not None and group.find is not None:
                self._finding.add(group)
                return partial(self._find, name, group, group.find)
        return None

    def _next_object(self) -> Callable[[], None] | None:
        while self._groups:
            name, group = next(iter(self._groups.items()))
            if group.find is not None:
                return None  # what comes after it must not take the room of its objects
            if not group.refs:
                del self._groups[name]
                continue
            ref = next(iter(group.refs.values()))
            if ref.size_bytes > self._free and self._flying:
                return None
            self._unqueue(ref.location)
            return self._launch(ref)
        return None

    def _launch(self, ref: ObjectRef) -> Callable[[], None]:
        self._free -= ref.size_bytes
        future: Future[bytes | Reject] = Future()
        self._flying[ref.location] = ref.size_bytes, future
        return partial(self._fetch, ref, future)

    # the readers

    def _run(self, job: Callable[[], None] | None, pool: ThreadPoolExecutor) -> None:
        while job is not None:
            job()
            with self._lock:
                if pool is not self._pool:  # closed in the meantime
                    return
                job = self._next()
                self._busy -= job is None

    def _fetch(self, ref: ObjectRef, future: Future[bytes | Reject]) -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(self._read(ref))
            except BaseException as error:
                future.set_exception(error)

    def _find(self, name: str, group: _Group, find: Callable[[], Sequence[ObjectRef]]) -> None:
        try:
            refs = find()
        except Exception:  # whoever asks for the series meets it as well
            refs = ()
        with self._lock:
            if self._groups.get(name) is group:
                group.find = None
                self._enqueue(group, refs)
            self._finding.discard(group)
            self._fill()
