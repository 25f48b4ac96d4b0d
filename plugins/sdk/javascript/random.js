// Random numbers from a seed, such as the request's. All Pointsman SDKs use splitmix64.

const STEP = 0x9e3779b97f4a7c15n;
const MASK = 0xffffffffffffffffn;

/** A deterministic random number generator with the same sequence in all SDKs. */
export class Random {
  #state;

  constructor(seed) {
    this.#state = BigInt(seed) & MASK;
  }

  /** Returns 64 random bits as a BigInt. */
  next() {
    this.#state = (this.#state + STEP) & MASK;
    let bits = this.#state;
    bits = ((bits ^ (bits >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
    bits = ((bits ^ (bits >> 27n)) * 0x94d049bb133111ebn) & MASK;
    return bits ^ (bits >> 31n);
  }

  /** Returns an integer from 0 to `n` - 1, or 0 if `n` is 0. `n` is at most 2^32. */
  below(n) {
    return Number(((this.next() >> 32n) * BigInt(n)) >> 32n);
  }
}
