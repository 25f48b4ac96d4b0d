// A middleware for vLLM Router that rejects blocked users and sets the temperature to zero.

// QuickJS has neither TextDecoder nor TextEncoder.
const PIECE = 8192;

function text(bytes) {
  const pieces = [];
  for (let at = 0; at < bytes.length; at += PIECE) {
    pieces.push(String.fromCharCode.apply(null, bytes.subarray(at, at + PIECE)));
  }
  return decodeURIComponent(escape(pieces.join("")));
}

function bytes(text) {
  const binary = unescape(encodeURIComponent(text));
  const result = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at++) result[at] = binary.charCodeAt(at);
  return result;
}

export const onRequest = {
  handle(request) {
    const body = JSON.parse(text(request.body));
    if (body.user === "blocked") return { tag: "reject", val: 429 };
    if (body.temperature === 0) return { tag: "continue" };
    return {
      tag: "modify",
      val: {
        headersSet: [{ name: "x-rewritten", value: bytes(request.path) }],
        headersAdd: [],
        headersRemove: [],
        bodyReplace: bytes(JSON.stringify({ ...body, temperature: 0 })),
      },
    };
  },
};
