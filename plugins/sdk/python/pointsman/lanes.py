"""A cache of lane ids by name: a call to the host costs more than most policies."""

from typing import Dict, Optional

from .policy import Call


class Lanes:
    """A cache of lane ids, valid for one topology. Create one per policy instance."""

    def __init__(self) -> None:
        self._topology: Optional[int] = None
        self._ids: Dict[str, Optional[int]] = {}

    def find(self, call: Call, name: str) -> Optional[int]:
        """Return the id of the lane with this name, or `None`."""
        if self._topology != call.context.topology:
            self._topology = call.context.topology
            self._ids.clear()
        if name not in self._ids:
            self._ids[name] = call.fleet.find(name)
        return self._ids[name]
