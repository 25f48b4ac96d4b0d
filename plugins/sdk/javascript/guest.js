// The border: what the contract's world wants, made of a policy. `pointsman policy build` writes the module that calls it.

import * as fleet from "pointsman:policy/fleet@0.1.0";
import * as log from "pointsman:policy/log@0.1.0";
import * as metrics from "pointsman:policy/metrics@0.1.0";
import * as request from "pointsman:policy/request@0.1.0";
import * as state from "pointsman:policy/state@0.1.0";

import { bind } from "./bind.js";

/** The exports of a policy's component. */
export const guest = (policy) => bind(policy, { fleet, log, metrics, request, state });
