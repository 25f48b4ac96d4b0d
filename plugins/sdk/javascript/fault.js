// Reports of errors that the code of a policy did not catch: message, file, line and stack. The
// host takes the last report of a call as the cause of its failure.

/** The beginning of a log line that reports a fault. */
const PREFIX = "pointsman:fault/1";
const MAX_FRAMES = 8;
/** A frame of QuickJS or Node: `at name (file:line:column)`, or without a name. */
const FRAME = /^\s*at (?:(.*) \()?(.+?):(\d+)(?::\d+)?\)?$/;

/** An error of a method of the policy, found outside of it: the location is that of the method. */
export class MethodError extends Error {
  constructor(message, method) {
    super(message);
    this.name = "TypeError";
    // Properties of functions in QuickJS.
    this.frame = { name: method?.name ?? "", file: method?.fileName, line: method?.lineNumber };
  }
}

/** Reports an error to the host. */
export function reportFault(log, error) {
  const frames = stackOf(error);
  const place = frames.find((frame) => !isSdk(frame.file)) ?? { file: "", line: "" };
  const stack = frames.slice(0, MAX_FRAMES).map(({ name, file, line }) => {
    const location = `${file}:${line}`;
    return name === "" ? location : `${name} (${location})`;
  });
  const fields = [place.file, place.line, messageOf(error), ...stack];
  log.write("error", [PREFIX, ...fields.map((field) => oneField(field))].join("\t"));
}

/** Returns the message of anything that was thrown. */
export function messageOf(error) {
  try {
    return String(error);
  } catch {
    return "an error without a message";
  }
}

function stackOf(error) {
  const frames = [];
  const add = ({ name, file, line }) => {
    if (typeof file === "string" && line > 0) frames.push({ name, ...original(file, line) });
  };
  if (error instanceof MethodError) {
    add(error.frame);
    return frames;
  }
  for (const text of String(error?.stack ?? "").split("\n")) {
    const match = FRAME.exec(text);
    if (match !== null) add({ name: match[1] ?? "", file: match[2], line: Number(match[3]) });
  }
  return frames;
}

// The location in the sources. The build of a TypeScript policy defines the source lines of its
// bundle: for each line the index of the source and the line in it, or 0 and 0.
function original(file, line) {
  const path = file.replace(/^file:\/\//, "").replace(/^\//, "");
  const map = globalThis.pointsmanSourceLines;
  if (map === undefined || !path.endsWith(map.file)) return { file: path, line };
  const [source, at] = [map.lines[2 * line - 2], map.lines[2 * line - 1]];
  return at > 0 ? { file: map.sources[source], line: at } : { file: path, line };
}

const isSdk = (file) => /(^|\/)sdk\/(javascript\/)?[a-z]+\.js$/.test(file);
const oneField = (value) => String(value).replace(/[\t\n\r]+/g, " ");
