// Prints the time, and fails in `advise` and `observe`, at the lines with a marker. Types have no
// lines in the bundle.

import { any } from "../sdk/pointsman.js";
import type { Advice, Call, LaneId } from "../sdk/pointsman.js";

interface Lanes {
  missing: LaneId[];
}

type Measure = (lanes: Lanes) => number;

const shortest: Measure = (lanes) => {
  return lanes.missing.length; // advise fails here
};

class Advisor {
  advise(call: Call): Advice {
    console.log("called at", new Date());
    shortest(call.fleet.candidates() as unknown as Lanes);
    return any();
  }

  observe(): void {
    throw new Error("cannot observe"); // observe fails here
  }
}

export default { name: "broken-typescript", version: "0.1.0", configure: () => new Advisor() };
