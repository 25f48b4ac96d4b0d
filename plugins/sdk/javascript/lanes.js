// Lane ids by name, asked for once per topology: a question to the host costs more than most policies.

/** The lanes that a policy knows by name. Keep one for as long as the policy lives. */
export class Lanes {
  #topology = null;
  #ids = new Map();

  /** The id of the lane of that name, or `null`. */
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
