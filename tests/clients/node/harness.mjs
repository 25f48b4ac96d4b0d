// Collects the features of client libraries, and runs them, as python/harness.py does:
// `node SCRIPT URL KEY MODULES`, or with `--list`.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const features = [];
export const [url, key, modules] = process.argv.slice(2);
export const model = "scripted";
export { assert };

/** Registers a function as a feature of a client that uses an endpoint of the host. */
export function feature(client, name, endpoint, run) {
  features.push({ client, name, endpoint, run });
}

/** Imports a package from the folder of installed packages. */
export async function load(name) {
  const resolve = createRequire(path.join(modules, "package.json")).resolve;
  return import(pathToFileURL(resolve(name)));
}

/** Joins what `pick` finds in each part of a stream. */
export async function joined(stream, pick) {
  let text = "";
  for await (const part of stream) text += pick(part) ?? "";
  return text;
}

function describe(error) {
  const status = error.status ?? error.statusCode;
  const name = error.constructor?.name ?? error.name;
  return [name, status, String(error.message).slice(0, 200)].filter(Boolean).join(" ");
}

export async function main() {
  for (const { client, name, endpoint, run } of features) {
    const row = { client, feature: name, endpoint };
    if (url !== "--list") {
      if (!name.includes(process.env.ONLY_FEATURE ?? "")) continue;
      let timer;
      const timeout = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error("took longer than 60 s")), 60_000);
      });
      try {
        await Promise.race([run(), timeout]);
        row.error = null;
      } catch (error) {
        row.error = describe(error);
        console.error(error);
      }
      clearTimeout(timer);
    }
    console.log(JSON.stringify(row));
  }
  if (url !== "--list") process.exit(0);
}
