"""Tune's trial, except that a lost node is not its fault and costs none of its restarts."""

from __future__ import annotations

import time

from ray.exceptions import RayActorError, RayTaskError
from ray.tune.error import TuneError
from ray.tune.experiment import Trial

from plato_core.sweep.logs import begins_after
from plato_core.training.failures import LOST_NODE, failure_line

# A node that is shut down ends its processes first, and Ray misses the node itself only after some 20 s without a sign
# of life (five health checks at 3 s each, and what they wait for an answer; ray 2.60.0).
_MISSED_WITHIN_S = 60.0


class SweepTrial(Trial):
    """A trial as Tune runs it.

    Tune itself spares only nodes whose end was announced to Ray, which nobody does here. What is spared has to get on
    meanwhile: where a trial loses its node again before it has written another checkpoint, that counts as any failure
    does, unless it comes so soon after that it may be the same node: Ray may start a trial again on one that it does
    not miss yet. So a trial that takes its node down each time (no memory left on the whole machine) fails in the end.

    Attributes:
        lost_node: Whether its last failure was that of its node, and did not count.
    """

    # Of the class, since instances are made of Tune's own.
    lost_node = False
    _spared: tuple[int, float] = (-1, 0.0)  # the iteration from which it went on, and when
    _died: tuple[float, str] | None = None

    @classmethod
    def of(cls, trial: Trial) -> SweepTrial:
        """Makes a trial of Tune's one of these, in place: Tune cannot be told of which class they are to be."""
        trial.__class__ = cls
        assert isinstance(trial, cls)
        return trial

    def handle_error(self, exc: TuneError | RayTaskError | RayActorError | None = None) -> None:
        """Counts a failure (Tune's hook), unless the node is at fault."""
        before = self.run_metadata.num_failures
        super().handle_error(exc)
        lost = isinstance(exc, RayActorError | RayTaskError) and failure_line(str(exc)) == LOST_NODE
        self._died = None if lost or not isinstance(exc, RayActorError) else (time.monotonic(), self._address())
        self.lost_node = lost and self._spare(before)

    def node_is_lost(self, address: str) -> None:
        """Takes back that the trial's death counted, where its process died as the first sign of a node's end.

        Args:
            address: Of a node that Ray misses now.
        """
        if self._died is not None and self._died[1] == address and time.monotonic() - self._died[0] < _MISSED_WITHIN_S:
            self._died = None
            self._spare(self.run_metadata.num_failures - 1)

    def _spare(self, failures: int) -> bool:
        begins, now = begins_after(self), time.monotonic()
        if begins > self._spared[0]:
            self._spared = begins, now
        elif now - self._spared[1] > _MISSED_WITHIN_S:
            return False
        self.run_metadata.num_failures = failures
        return True

    def _address(self) -> str:
        return str((self.last_result or {}).get("node_ip", ""))
