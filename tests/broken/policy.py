"""Prints the time, and fails in `advise` and `observe`, at the lines with a marker."""

import json
from datetime import datetime, timezone

from pointsman import Policy, any_lane


def shortest(lanes):
    return lanes["missing"]  # advise fails here


class Advisor:
    def advise(self, call):
        print("called at", json.dumps(datetime.now(timezone.utc).isoformat()))
        shortest({lane: 0 for lane in call.fleet.candidates()})
        return any_lane()

    def observe(self, now_ms, done, host):
        raise ValueError("cannot observe")  # observe fails here


policy = Policy("broken-python", "0.1.0", lambda _config: Advisor())
