"""A plan whose first windows come late, in a module that Ray's workers can import."""

from __future__ import annotations

import os
import time

from pipeline.mixtures.plan import MixturePlan

LATE = 1.5


class SlowStart(MixturePlan):
    """In another process than the one it was made in, the steps before `until` take some seconds."""

    until = 60

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.made_in = os.getpid()

    def steps(self, start, stop, slots=slice(None)):
        if os.getpid() != self.made_in and start < self.until:
            time.sleep(LATE)
        return super().steps(start, stop, slots)


class Slow(SlowStart):
    """The same for every window, a little."""

    def steps(self, start, stop, slots=slice(None)):
        if os.getpid() != self.made_in:
            time.sleep(0.25)
        return MixturePlan.steps(self, start, stop, slots)
