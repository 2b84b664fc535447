"""An engine that serves with one engine while a better one is built beside it, and swaps between two batches.

Knows how engines are used, and when another one could gain; not which back-ends there are, nor how one is opened.

Two rules hold it together. An engine is closed only when no batch is in its hands: `submit` enters under the lock
that the swap takes, before it calls the engine, and leaves when the result is released. And whatever the spec allowed
before a swap is allowed after it, so it does no harm to have read the spec just before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING

from .errors import EngineError
from .protocol import Engine, EngineSpec, Frames, Levels, Result, Sizes, State, Ticket, check_batch

if TYPE_CHECKING:
    from typing import Self

log = logging.getLogger(__name__)

BATCHES_BEFORE_REBUILD = 30
"""How many batches of a size make it worth a build: about a second of a stream."""
SIZES_KEPT = 4
"""For how many sizes an engine is built at most; the latest count."""
PATIENCE_S = 1.0
"""How long `close` waits for a build before it says so."""


class _Member:
    """An engine, and `batches`: how many are in its hands."""

    def __init__(self, engine: Engine, spec: EngineSpec) -> None:
        self.engine, self.spec = engine, spec
        self.batches = 0

    def own(self, handle: State | None) -> State | None:
        """What the engine made; a history that another one began cannot be read here, and starts afresh."""
        return handle.state if isinstance(handle, _Handle) and handle.maker is self else None


@dataclass(frozen=True, eq=False)
class _Handle:
    """A history, and whose it is."""

    maker: _Member
    state: State


class _Ticket:
    def __init__(self, ticket: Ticket, member: _Member, leave: Callable[[_Member], None]) -> None:
        self._ticket, self._member, self._leave = ticket, member, leave

    def result(self) -> Result:
        try:
            result = self._ticket.result()
        except EngineError:
            self._leave(self._member)
            raise

        def release() -> None:
            result.release()
            self._leave(self._member)

        states = [None if state is None else _Handle(self._member, state) for state in result.states]
        return Result(result.frames, states, release)


class Standby:
    """Serves with `engine`; a better one that is opened in a thread takes its place.

    name: what the better one is called in the log.
    open_for: opens and checks it, for the tile sizes that it is given; takes minutes, and cannot be interrupted.

    Of the spec, `backend`, `best_batch`, `max_batch`, `sizes` and `concurrent` are those of the engine that serves. The
    rest stays as it was first, because frames are planned by it.
    """

    def __init__(self, engine: Engine, name: str, open_for: Callable[[Sizes], Engine]) -> None:
        self._name, self._open_for = name, open_for
        self._serving = _Member(engine, engine.spec)
        self._builder: threading.Thread | None = None
        self._seen: Counter[tuple[int, int]] = Counter()
        self._asked: set[tuple[int, int]] = set()
        self._closed = False
        self._changed = threading.Condition()
        """Held to change any of these and a member's `batches`; never while an engine is called."""

    @property
    def spec(self) -> EngineSpec:
        return self._serving.spec

    def prepare(self, sizes: Sizes) -> None:
        """Open the better engine in a thread; nothing happens while there is one at work, or after `close`."""
        with self._changed:
            if self._closed or (self._builder and self._builder.is_alive()):
                return
            self._builder = threading.Thread(target=self._build, args=(sizes,), name=f"build {self._name}")
            self._builder.start()

    def submit(self, batch: Frames | Levels, states: Sequence[State | None] | None = None) -> Ticket:
        check_batch(self.spec, batch, states)
        with self._changed:
            if self._closed:
                raise EngineError("the engine is closed")
            self._notice((batch.shape[1], batch.shape[2]))
            member = self._serving
            member.batches += 1
        try:
            ticket = member.engine.submit(batch, states and [member.own(handle) for handle in states])
        except BaseException:
            self._leave(member)
            raise
        return _Ticket(ticket, member, self._leave)

    def _leave(self, member: _Member) -> None:
        with self._changed:
            member.batches -= 1
            self._changed.notify_all()

    def _notice(self, size: tuple[int, int]) -> None:
        """Build anew for a size that comes often; each size is asked for once, whatever becomes of it."""
        sizes = self._serving.spec.sizes
        if sizes is None or size in (*sizes, self._serving.engine.spec.tile) or size in self._asked:
            return
        if self._builder and self._builder.is_alive():
            return
        self._seen[size] += 1
        if self._seen[size] >= BATCHES_BEFORE_REBUILD:
            self._asked.add(size)
            self.prepare((*sizes, size)[-SIZES_KEPT:])

    def _build(self, sizes: Sizes) -> None:
        """The thread: open the better engine, swap, and close the other one when its last batch is released."""
        what = self._name + (f" for tiles of {', '.join(f'{w}x{h}' for h, w in sizes)}" if sizes else "")
        began = time.monotonic()
        log.info("%s is being prepared; %s serves meanwhile", what, self.spec.backend)
        try:
            engine = self._open_for(sizes)
            misfit = _misfit(self.spec, engine.spec)  # holds for the swap too: only this thread changes the spec
            old = None if misfit else self._swap(engine)
            if old is None:
                engine.close()
                if misfit:
                    raise EngineError(misfit)
                return
            fresh = ", and every history starts afresh" if self.spec.recurrent else ""
            log.info(
                "%s is ready after %.1f s: %s serves now%s", what, time.monotonic() - began, self.spec.backend, fresh
            )
            with self._changed:
                self._changed.wait_for(lambda: not old.batches or self._closed)
            old.engine.close()
        except Exception as error:  # the thread's edge: the engine that serves goes on
            mistake = not isinstance(error, EngineError)
            log.warning("%s failed: %s; %s serves on", what, error, self.spec.backend, exc_info=mistake)

    def _swap(self, engine: Engine) -> _Member | None:
        """Serve with `engine`; gives what served until now, or None if there is nothing to serve after `close`."""
        with self._changed:
            if self._closed:
                return None
            old, new = self._serving, engine.spec
            taken = {name: getattr(new, name) for name in ("backend", "best_batch", "max_batch", "sizes", "concurrent")}
            spec = replace(old.spec, **taken)
            self._serving = _Member(engine, spec)
            return old

    def close(self) -> None:
        with self._changed:
            self._closed = True  # from here on nothing is swapped, and no thread is started
            self._changed.notify_all()
        try:
            self._serving.engine.close()
        finally:
            if self._builder:
                self._builder.join(PATIENCE_S)
                if self._builder.is_alive():
                    log.info("waiting for %s: a build cannot be interrupted", self._name)
                    self._builder.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _misfit(planned: EngineSpec, new: EngineSpec) -> str:
    """Why batches that `planned` allows cannot all go to an engine of `new`; nothing if they can."""
    for name in ("model", "stride", "overlap_px", "fixed_tile", "whole_frame", "recurrent"):
        wanted, got = getattr(planned, name), getattr(new, name)
        if got != wanted:
            return f"its {name} must be {wanted!r} like that of the engine that serves, got {got!r}"
    (height, width), (new_height, new_width) = planned.tile, new.tile
    if new_height < height or new_width < width or (planned.fixed_tile and new.tile != planned.tile):
        return f"its tiles must be at least {width}x{height}, by which frames are cut, got {new_width}x{new_height}"
    if planned.floating and not new.floating:
        return "it must take levels, like the engine that serves"
    for name in ("slots", "max_batch"):
        least, got = getattr(planned, name), getattr(new, name)
        if got < least:
            return f"its {name} must be at least {least} like that of the engine that serves, got {got}"
    return ""
