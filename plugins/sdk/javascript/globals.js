// Standard globals that QuickJS lacks, or that a component has in another form. The entry module
// imports this before the policy.

import { hostConsole, replaceClock } from "./ambient.js";
import { Decoder, Encoder } from "./text.js";

globalThis.TextEncoder ??= Encoder;
globalThis.TextDecoder ??= Decoder;
globalThis.console = hostConsole;
replaceClock(globalThis);
