// Requests to the host, and its events.

let csrf = null;

/** An error that the host has reported. */
export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `the host responded with status ${status}`);
    this.status = status;
    this.code = body?.error?.code ?? null;
  }
}

/** Sends a request to the admin API; returns the response. */
export async function send(method, path, body, headers = {}) {
  const all = { ...headers };
  if (csrf) all["x-pointsman-csrf"] = csrf;
  if (body !== undefined) all["content-type"] = "application/json";
  const response = await fetch(`api${path}`, {
    method, headers: all, credentials: "same-origin",
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (response.status === 401 && path !== "/session") {
    document.dispatchEvent(new CustomEvent("session-ended"));
  }
  return response;
}

/** Sends a request, and returns the JSON of the response. */
export async function call(method, path, body, headers) {
  const response = await send(method, path, body, headers);
  const text = await response.text();
  let value = null;
  try { value = text === "" ? null : JSON.parse(text); } catch { value = text; }
  if (!response.ok) throw new ApiError(response.status, value);
  return value;
}

/** Returns the session, and keeps its token for requests that change something. */
export async function session() {
  const found = await call("GET", "/session");
  csrf = found.csrf;
  return found;
}

/** Opens the stream of events. The browser connects again when it is lost. */
export function events(handlers, onConnection) {
  const source = new EventSource("api/events");
  for (const [name, handler] of Object.entries(handlers)) {
    source.addEventListener(name, (event) => handler(JSON.parse(event.data)));
  }
  source.onopen = () => onConnection(true);
  source.onerror = async () => {
    onConnection(false);
    if (source.readyState !== EventSource.CLOSED) return;
    const found = await session().catch(() => null);
    if (found && !found.authenticated) {
      document.dispatchEvent(new CustomEvent("session-ended"));
    } else {
      setTimeout(() => events(handlers, onConnection), 2000);
    }
  };
  return source;
}
