// The component boundary. `pointsman policy build` generates the module that calls `guest`.

import * as fleet from "pointsman:policy/fleet@0.1.3";
import * as log from "pointsman:policy/log@0.1.3";
import * as metrics from "pointsman:policy/metrics@0.1.3";
import * as request from "pointsman:policy/request@0.1.3";
import * as state from "pointsman:policy/state@0.1.3";

import { bind } from "./bind.js";

/** Returns the exports of a policy's component. */
export const guest = (policy) => bind(policy, { fleet, log, metrics, request, state });
