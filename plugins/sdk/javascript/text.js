// `TextEncoder` and `TextDecoder` for UTF-8, which QuickJS lacks. Unpaired surrogates and invalid
// bytes become U+FFFD, as in browsers.

/** The part of the standard class that policies need. */
export class Encoder {
  get encoding() {
    return "utf-8";
  }

  encode(text = "") {
    const bytes = [];
    for (const character of String(text).toWellFormed()) {
      const code = character.codePointAt(0);
      if (code < 0x80) {
        bytes.push(code);
      } else if (code < 0x800) {
        bytes.push(0xc0 | (code >> 6), tail(code));
      } else if (code < 0x10000) {
        bytes.push(0xe0 | (code >> 12), tail(code >> 6), tail(code));
      } else {
        bytes.push(0xf0 | (code >> 18), tail(code >> 12), tail(code >> 6), tail(code));
      }
    }
    return Uint8Array.from(bytes);
  }
}

const tail = (code) => 0x80 | (code & 0x3f);

/** The part of the standard class that policies need. */
export class Decoder {
  constructor(encoding = "utf-8") {
    if (!/^utf-?8$/i.test(encoding)) throw new RangeError(`unsupported encoding: ${encoding}`);
  }

  get encoding() {
    return "utf-8";
  }

  decode(input = []) {
    const bytes = input.buffer === undefined ? new Uint8Array(input) : input;
    let text = "";
    for (let at = 0; at < bytes.length; ) {
      const [code, length] = codePoint(bytes, at);
      text += String.fromCodePoint(code);
      at += length;
    }
    return text;
  }
}

// Returns the code point at a byte and its length. An invalid sequence ends before the first byte
// that cannot belong to it.
function codePoint(bytes, at) {
  const first = bytes[at];
  if (first < 0x80) return [first, 1];
  const size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4) return [0xfffd, 1];
  const limits = { 0xe0: [0xa0, 0xbf], 0xed: [0x80, 0x9f], 0xf0: [0x90, 0xbf], 0xf4: [0x80, 0x8f] };
  let [low, high] = limits[first] ?? [0x80, 0xbf];
  let code = first & (0x7f >> size);
  for (let index = 1; index < size; index += 1) {
    const byte = bytes[at + index];
    if (byte === undefined || byte < low || byte > high) return [0xfffd, index];
    code = (code << 6) | (byte & 0x3f);
    [low, high] = [0x80, 0xbf];
  }
  return [code, size];
}
