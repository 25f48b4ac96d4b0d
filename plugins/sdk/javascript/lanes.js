// A cache of lane ids by name: a call to the host costs more than most policies.

/** A cache of lane ids, valid for one topology. Create one per policy instance. */
export class Lanes {
  #topology = null;
  #ids = new Map();

  /** Returns the id of the lane with this name, or `null`. */
  find(call, name) {
    if (this.#topology !== call.context.topology) {
      this.#topology = call.context.topology;
      this.#ids.clear();
    }
    let id = this.#ids.get(name);
    if (id === undefined) {
      id = call.fleet.find(name) ?? null;
      this.#ids.set(name, id);
    }
    return id;
  }
}
