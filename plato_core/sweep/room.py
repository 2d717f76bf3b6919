"""For how many trials the cluster has room, as its nodes come and go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Room:
    """What the driver knows of it. Outside the scheduler, which Tune pickles.

    Attributes:
        trials: So many fit at once; None where that cannot change, as on a Ray of this machine.
    """

    trials: int | None = None

    def lacks(self, unfinished: int) -> bool:
        """Returns whether some of so many trials have to wait for others."""
        return self.trials is not None and self.trials < unfinished


ROOM = Room()
