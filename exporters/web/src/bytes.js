// Bytes: SHA-256, hexadecimal, base64, safetensors.

import { MissingDependencyError } from './errors.js';
import { asList, asObject, asText, parseStrict } from './json.js';

const encoder = new TextEncoder();

export const utf8 = (text) => encoder.encode(text);

// WebCrypto's functions, which browsers give to secure pages alone.
export function subtle() {
  const found = globalThis.crypto?.subtle;
  if (found === undefined) {
    throw new MissingDependencyError('This page has no WebCrypto, without which neither hashes nor signatures can be checked.', {
      expected: 'a secure context',
      where: globalThis.location?.href,
      hint: 'Serve it by https, or from localhost.',
    });
  }
  return found;
}

export async function sha256(data) {
  return new Uint8Array(await subtle().digest('SHA-256', data));
}

export function hex(data) {
  return Array.from(data, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

export async function sha256Hex(data) {
  return hex(await sha256(data));
}

export function isSha256(text) {
  return typeof text === 'string' && /^[0-9a-f]{64}$/.test(text);
}

export function concat(parts) {
  const whole = new Uint8Array(parts.reduce((total, part) => total + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export function equalBytes(left, right) {
  return left.length === right.length && left.every((byte, index) => byte === right[index]);
}

const ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
const SEXTETS = new Uint8Array(128).fill(255);
for (let index = 0; index < 64; index += 1) SEXTETS[ALPHABET.charCodeAt(index)] = index;

// Standard base64 with padding and nothing else; `atob` would take blanks. Throws SyntaxError.
export function decodeBase64(text) {
  const padding = text.endsWith('==') ? 2 : text.endsWith('=') ? 1 : 0;
  const length = text.length - padding;
  if (text.length % 4) throw new SyntaxError('its base64 has a wrong length');
  const data = new Uint8Array((text.length / 4) * 3 - padding);
  let bits = 0;
  let at = 0;
  for (let index = 0; index < length; index += 1) {
    const code = text.charCodeAt(index);
    const sextet = code < 128 ? SEXTETS[code] : 255;
    if (sextet === 255) throw new SyntaxError(`its base64 has a strange character at ${index}`);
    bits = (bits << 6) | sextet;
    if (index % 4 === 1) data[at++] = bits >> 4;
    else if (index % 4 === 2) data[at++] = bits >> 2;
    else if (index % 4 === 3) data[at++] = bits;
  }
  return data;
}

const MAX_HEADER_BYTES = 1 << 24;
const MAX_TENSORS = 64;
const TYPES = { F32: { bytes: 4, read: readFloat32 }, F16: { bytes: 2, read: readFloat16 }, I32: { bytes: 4, read: readInt32 } };

// The tensors of a safetensors file by name, each `{dtype, shape, values}`, and its metadata. Throws SyntaxError or
// TypeError where it is none, of the file's bytes any is left over or used twice, or a header is too large.
export function readSafetensors(data) {
  if (data.length < 8) throw new SyntaxError(`it has only ${data.length} bytes`);
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const size = view.getBigUint64(0, true);
  if (size > BigInt(Math.min(MAX_HEADER_BYTES, data.length - 8))) throw new SyntaxError(`its header claims ${size} bytes`);
  const start = 8 + Number(size);
  const header = asObject(parseStrict(data.subarray(8, start)), 'header');
  if (Object.keys(header).length > MAX_TENSORS + 1) throw new SyntaxError('its header names too many tensors');
  const metadata = asObject(header.__metadata__ ?? Object.create(null), '__metadata__');
  for (const [name, text] of Object.entries(metadata)) asText(text, name);
  const tensors = Object.create(null);
  const spans = [];
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const { dtype, shape, data_offsets: offsets } = asObject(entry, name);
    if (Object.keys(entry).length !== 3 || !Object.hasOwn(TYPES, asText(dtype, name))) throw new TypeError(`${name.slice(0, 40)}: another type than ${Object.keys(TYPES)}`);
    for (const number of [...asList(shape, name), ...asList(offsets, name)]) {
      if (!Number.isSafeInteger(number) || number < 0) throw new TypeError(`${name.slice(0, 40)}: a size is no whole number`);
    }
    const count = shape.reduce((product, length) => product * length, 1);
    if (offsets.length !== 2 || offsets[1] - offsets[0] !== count * TYPES[dtype].bytes || start + offsets[1] > data.length) {
      throw new TypeError(`${name.slice(0, 40)}: its shape and its bytes differ`);
    }
    spans.push(offsets);
    tensors[name] = { dtype, shape, values: TYPES[dtype].read(data, start + offsets[0], count) };
  }
  spans.sort((left, right) => left[0] - right[0] || left[1] - right[1]);
  let end = 0;
  for (const [first, last] of spans) {
    if (first !== end) throw new TypeError('its tensors overlap, or leave bytes between them');
    end = last;
  }
  if (start + end !== data.length) throw new TypeError('bytes are left over after its tensors');
  return { tensors, metadata };
}

const isLittleEndian = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

function readFloat32(data, start, count) {
  if (isLittleEndian) return new Float32Array(data.slice(start, start + 4 * count).buffer);
  const view = new DataView(data.buffer, data.byteOffset + start, 4 * count);
  return Float32Array.from({ length: count }, (_, index) => view.getFloat32(4 * index, true));
}

function readInt32(data, start, count) {
  const view = new DataView(data.buffer, data.byteOffset + start, 4 * count);
  return Int32Array.from({ length: count }, (_, index) => view.getInt32(4 * index, true));
}

function readFloat16(data, start, count) {
  const view = new DataView(data.buffer, data.byteOffset + start, 2 * count);
  return Float32Array.from({ length: count }, (_, index) => float16(view.getUint16(2 * index, true)));
}

function float16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -14 * (fraction / 1024);
}

// The bytes of a safetensors file of float32 tensors `[name, shape, values]`, in this order, with one metadata entry.
export function writeSafetensors(tensors, [key, text]) {
  const header = [`"__metadata__":{${JSON.stringify(key)}:${asciiJson(text)}}`];
  const parts = [];
  let end = 0;
  for (const [name, shape, values] of tensors) {
    const data = new Uint8Array(4 * values.length);
    const view = new DataView(data.buffer);
    values.forEach((value, index) => view.setFloat32(4 * index, value, true));
    header.push(`${JSON.stringify(name)}:{"dtype":"F32","shape":[${shape}],"data_offsets":[${end},${end + data.length}]}`);
    parts.push(data);
    end += data.length;
  }
  let head = `{${header.join(',')}}`;
  head += ' '.repeat((8 - (head.length % 8)) % 8);
  const size = new Uint8Array(8);
  new DataView(size.buffer).setBigUint64(0, BigInt(head.length), true);
  return concat([size, utf8(head), ...parts]);
}

function asciiJson(text) {
  return JSON.stringify(text).replace(/[\u007f-\uffff]/g, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`);
}
