"""Seconds per sub-network, end to end: new sub-networks in each call, results on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import peers

from gpu_bench.clocks import Budget, OverTimeError, spread
from gpu_bench.networks import Case, Scene
from gpu_bench.session import Session
from gpu_bench.systems import DisagreesError, System, agreement, of_peer, ours
from gpu_bench.turns import Contender, take_turns
from rlal_fast.errors import InputError
from rlal_fast.kernels.cuda import PRECISIONS

_TURNS = {1: 15, 10: 9, 100: 5}
_QUICK_TURNS = 3
_PREPARING = 0.5  # of a section's time at most, before the clock starts
_SMALL = 64  # pixels on a side: larger images never fit into shared memory

Row = dict[str, Any]


def measure(case: Case, session: Session, budget: Budget) -> dict[str, Any]:
    """All systems on one case.

    Raises:
        InputError: the network cannot be made here.
        LostDeviceError: a kernel failed for good.
    """
    entry = _Entry(case, session)
    entry.enter_all(budget.part(_PREPARING))
    entry.run(budget)
    graph = entry.scene.graph
    return {
        "case": asdict(case),
        "macs": int(graph.cost.macs(graph.full_widths)),
        "macs_kept": entry.scene.macs(entry.scene.subnets(max(case.per_call), 1)),
        "rows": entry.rows,
    }


class _Entry:
    """Lets systems in that agree with the reference, and runs them."""

    def __init__(self, case: Case, session: Session) -> None:
        self.case, self.session, self.scene = case, session, Scene(case, session.device)
        self.rows: list[Row] = []
        self.systems: list[tuple[System, dict[str, Any]]] = []
        self._truths = {s: self.scene.truth(s) for s in self.scene.subnets(2, 0)}

    def enter_all(self, budget: Budget) -> None:
        for precision in PRECISIONS:
            whole = self._ours(precision, "whole")
            self._ours(precision, "layers")
            # Where some sub-networks fit into shared memory and some do not, "auto" is a way of
            # its own; otherwise it is one of the two.
            if not whole and self.case.size <= _SMALL:
                self._ours(precision, "auto")
        for key in self.session.peers:
            self._peer(key, budget)

    def _ours(self, precision: str, path: str) -> bool:
        key, title = f"rlal_fast-{precision}-{path}", f"rlal_fast {precision}, {path}"
        return self._enter(key, title, lambda: ours(self.scene, precision, path))

    def _peer(self, key: str, budget: Budget) -> None:
        entry = peers.GPU_ENTRIES[key]
        reason = peers.missing_on(key, self.session.device)
        if entry.once and not self.case.compiled:
            reason = reason or "compiles for a minute or more: on the first network only"
        if reason:
            self._leave_out(key, entry.title, reason)
            return
        limit = budget.left if entry.once else budget.left / 2
        self._enter(key, entry.title, lambda: of_peer(key, self.scene, limit))

    def _enter(self, key: str, title: str, make: Callable[[], System]) -> bool:
        name = f"{self.case.name}/{key}"
        if name in self.session.lost:
            self._leave_out(key, title, "lost the device in an earlier attempt")
            return False
        print(f"  {title} ...", flush=True)
        try:
            system = make()
            self.systems.append((system, agreement(system, self.scene, self._truths)))
            return True
        except OverTimeError:
            self._leave_out(key, title, "its set-up did not fit into the time")
            self.session.check_device(name)
        except InputError as error:
            self._leave_out(key, title, str(error))
        except DisagreesError as error:
            self._fail(key, title, f"disagrees with the reference: {error}")
        except Exception as error:
            self._fail(key, title, self.session.described(error))
            self.session.check_device(name)
        return False

    def _leave_out(self, key: str, title: str, reason: str) -> None:
        self.rows.append({"system": key, "title": title, "left_out": reason})
        print(f"  {title}: {reason}", flush=True)

    def _fail(self, key: str, title: str, reason: str) -> None:
        self._leave_out(key, title, reason)
        self.session.failures.append(f"{self.case.name}: {title}: {reason}")

    def run(self, budget: Budget) -> None:
        """Appends a row for each system and number of sub-networks per call."""
        contenders: list[tuple[Row, Contender, list[tuple[float, float]]]] = []
        for system, found in self.systems:
            for count in system.per_call:
                split: list[tuple[float, float]] = []
                contender = self._contender(system, count, split)
                self.rows.append(_head(system, count) | found)
                contenders.append((self.rows[-1], contender, split))
        take_turns([contender for _, contender, _ in contenders], budget)
        for row, contender, split in contenders:
            row |= _figures(contender, split, row["subnets_per_call"])
            if contender.error is not None:
                reason = self.session.described(contender.error)
                self.session.failures.append(f"{self.case.name}: {contender.name}: {reason}")
                self.session.check_device(f"{self.case.name}/{row['system']}")

    def _contender(self, system: System, count: int, split: list[tuple[float, float]]) -> Contender:
        def turn(number: int) -> float:
            setup, run = system.score(self.scene.subnets(count, number + 1))
            split.append((setup / count, run / count))
            return (setup + run) / count

        most = _TURNS.get(count, 5)
        _, seen = system.score(self.scene.subnets(1, 0))
        name = f"{system.title}, {system.setting}, {count} a call"
        return Contender(
            name, turn, seen * count, min(most, _QUICK_TURNS) if self.session.quick else most
        )


def _head(system: System, count: int) -> Row:
    return {
        "system": system.key,
        "title": system.title,
        "setting": system.setting,
        "precision": system.precision,
        "subnets_per_call": count,
        "load_seconds": system.load_seconds,
        "setup_is_of": "one sub-network, the same in each turn" if system.once else "each",
    }


def _figures(contender: Contender, split: list[tuple[float, float]], count: int) -> Row:
    return {
        "seconds_per_subnet": spread(contender.seconds),
        "setup_seconds_per_subnet": spread([setup for setup, _ in split]),
        "run_seconds_per_subnet": spread([run for _, run in split]),
        "turns": len(contender.seconds),
        "subnets_measured": len(contender.seconds) * count,
        "left_out": contender.left_out,
    }


def fastest(section: dict[str, Any], precision: str) -> Row | None:
    """Our row of a precision with the lowest median of seconds per sub-network."""
    rows = [
        row
        for row in section.get("rows", [])
        if row["system"].startswith(f"rlal_fast-{precision}-") and row.get("seconds_per_subnet")
    ]
    return min(rows, key=lambda row: row["seconds_per_subnet"]["median"], default=None)
