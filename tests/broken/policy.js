// Prints the time, and fails in `advise` and `observe`, at the lines with a marker.

import { any } from "../sdk/pointsman.js";

const shortest = (lanes) => {
  return lanes.missing.length; // advise fails here
};

class Advisor {
  advise(call) {
    console.log("called at", new Date());
    shortest(call.fleet.candidates());
    return any();
  }

  observe() {
    throw new Error("cannot observe"); // observe fails here
  }
}

export default { name: "broken-javascript", version: "0.1.0", configure: () => new Advisor() };
