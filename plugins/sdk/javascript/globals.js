// Standard globals that QuickJS lacks. The entry module imports this before the policy.

import { Decoder, Encoder } from "./text.js";

globalThis.TextEncoder ??= Encoder;
globalThis.TextDecoder ??= Decoder;
