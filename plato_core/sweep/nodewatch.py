"""Follows the nodes of a Ray cluster while a sweep runs: which are lost, which join, and who waits for room."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.util.placement_group import PlacementGroup, placement_group

from plato_core.errors import SweepError
from plato_core.sweep.channel import emit
from plato_core.sweep.cluster import alive_nodes, size
from plato_core.sweep.events import NodeChanged, TrialWaits
from plato_core.sweep.nodes import Question
from plato_core.sweep.packing import Packing
from plato_core.sweep.room import ROOM
from plato_core.sweep.trial import SweepTrial

# A look takes Ray's head some milliseconds; it misses a node that vanished only after some 20 s.
_EVERY_S = 2.0
# The sweep's folder has been there for long when a node joins: of mounted storage only the mount may be late.
_SEEN_WITHIN_S = 10.0


class NodeWatch(tune.Callback):
    """Tells what becomes of the nodes. Tune itself starts trials again on those that are left, and on new ones.

    Args:
        packing: How the population was laid over the nodes that the sweep began with.
        num_env_runners: Of each trial.
        sweep_dir: The sweep's folder, which a new node has to see.
        wait_s: How long trials may wait, in seconds, when no node has room for any.
    """

    def __init__(self, packing: Packing, num_env_runners: int, sweep_dir: Path, wait_s: float) -> None:
        self._packing, self._num_env_runners = packing, num_env_runners
        self._sweep_dir, self._wait_s = sweep_dir, wait_s
        self._known = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in alive_nodes()}
        self._most = len(self._known)
        self._asked: dict[str, Question] = {}
        self._refused: dict[str, PlacementGroup] = {}
        self._address_of: dict[str, str] = {}  # of each trial's node
        self._waiting: set[str] = set()
        self._no_room_since: float | None = None
        self._looked = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Its first result will tell where it is."""
        self._address_of.pop(trial.trial_id, None)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A result tells on which node the trial is."""
        self._address_of[trial.trial_id] = str(result.get("node_ip"))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Looks every two seconds.

        Raises:
            SweepError: No node has had room for any trial for too long.
        """
        now = time.monotonic()
        if now - self._looked < _EVERY_S:
            return
        self._looked = now
        alive = {node["NodeID"]: node for node in alive_nodes()}
        for node_id in self._known.keys() - alive.keys():
            self._lose(self._known.pop(node_id), trials)
        for node_id in self._asked.keys() - alive.keys():
            del self._asked[node_id]
        for node_id in alive.keys() - self._known.keys() - self._asked.keys() - self._refused.keys():
            self._asked[node_id] = Question(alive[node_id], self._sweep_dir, _SEEN_WITHIN_S)
        for node_id in [node_id for node_id, question in self._asked.items() if not question.is_open()]:
            self._hear(alive[node_id], self._asked.pop(node_id))
        ROOM.trials = self._packing.holds([size(alive[node_id]) for node_id in self._known], self._num_env_runners)
        self._tell_who_waits(trials)
        self._give_up(trials, now)

    def _lose(self, address: str, trials: list[Trial]) -> None:
        there = [trial for trial in trials if self._was_at(address, trial) and not _is_over(trial)]
        for trial in there:
            if isinstance(trial, SweepTrial):
                trial.node_is_lost(address)
        nodes = len(self._known)
        emit(NodeChanged(change="lost", address=address, nodes=nodes, most=self._most, trials=len(there)))

    def _was_at(self, address: str, trial: Trial) -> bool:
        # One that had no result there yet is known by its failure.
        unknown = address if isinstance(trial, SweepTrial) and trial.lost_node else None
        return self._address_of.get(trial.trial_id, unknown) == address

    def _hear(self, node: dict[str, Any], question: Question) -> None:
        address = str(node["NodeManagerAddress"])
        try:
            question.answer()
        except SweepError as error:
            # No trial is to start there again; one that has meanwhile can neither restore nor save, and left at once.
            everything = {"CPU": float(size(node).cpus), f"node:{address}": 0.001}
            self._refused[node["NodeID"]] = placement_group([everything])
            change, why = "refused", str(error)
        else:
            self._known[node["NodeID"]] = address
            self._most = max(self._most, len(self._known))
            change, why = "joined", None
        emit(NodeChanged(change=change, address=address, nodes=len(self._known), most=self._most, why=why))

    def _tell_who_waits(self, trials: list[Trial]) -> None:
        unfinished = [trial for trial in trials if not _is_over(trial)]
        waiting = {trial.trial_id for trial in unfinished if trial.status in (Trial.PENDING, Trial.PAUSED)}
        if not ROOM.lacks(len(unfinished)):
            waiting = set()  # they are about to start
        for trial_id in sorted(waiting - self._waiting):
            emit(TrialWaits(trial=trial_id))
        self._waiting = waiting

    def _give_up(self, trials: list[Trial], now: float) -> None:
        if ROOM.trials or any(trial.status == Trial.RUNNING for trial in trials):
            self._no_room_since = None
            return
        self._no_room_since = now if self._no_room_since is None else self._no_room_since
        if now - self._no_room_since >= self._wait_s:
            raise SweepError(
                f"none of the {len(self._known)} Ray nodes that are left has had room for a trial for {self._wait_s:g} "
                "s; start others and resume the sweep, or give them longer with ray_wait_s"
            )


def _is_over(trial: Trial) -> bool:
    return trial.status in (Trial.TERMINATED, Trial.ERROR)
