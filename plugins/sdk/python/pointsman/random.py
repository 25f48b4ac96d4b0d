"""Random numbers from a seed, such as the request's. All Pointsman SDKs use splitmix64."""

_MASK = (1 << 64) - 1


class Random:
    """A deterministic random number generator with the same sequence in all SDKs."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def next(self) -> int:
        """Return 64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        bits = self._state
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
        return bits ^ (bits >> 31)

    def below(self, n: int) -> int:
        """Return an integer from 0 to `n` - 1, or 0 if `n` is 0. `n` is at most 2^32."""
        return ((self.next() >> 32) * n) >> 32
