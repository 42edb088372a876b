// Public keys and their signatures: Ed25519 by WebCrypto, key ids as securesystemslib computes them.

import { decodeBase64, equalBytes, hex, sha256Hex, subtle, utf8 } from './bytes.js';
import { MissingDependencyError, SignatureError, shown } from './errors.js';

const SPKI_PREFIX = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const FIELD = 2n ** 255n - 19n;
const ORDER_8_Y = 0x05fc536d880238b13933c6d305acdfd5f098eff289f4c345b027b2c28f95e826n;
const [BEGIN, END] = ['-----BEGIN PUBLIC KEY-----', '-----END PUBLIC KEY-----'];

/**
 * An Ed25519 public key from PEM (SubjectPublicKeyInfo): `{pem, keyId, raw, verify}`.
 * Throws SignatureError where the text is none, MissingDependencyError where WebCrypto knows no Ed25519.
 */
export async function publicKeyFromPem(text) {
  const base64 = bodyOf(text);
  let spki = new Uint8Array();
  try {
    spki = decodeBase64(base64);
  } catch {
    // no base64: refused below
  }
  // One key has one text: two that differ in bits which stand for nothing would count as two.
  const isCanonical = btoa(String.fromCharCode(...spki.subarray(0, 44))) === base64;
  if (!isCanonical || spki.length !== 44 || !equalBytes(spki.subarray(0, 12), Uint8Array.from(SPKI_PREFIX))) {
    throw new SignatureError('The text is not an Ed25519 public key in PEM form.', {
      found: shown(text),
      expected: 'a public key in PEM form',
      hint: '`icis-deploy keygen` makes one.',
    });
  }
  const raw = spki.slice(12);
  if (isOfSmallOrder(raw)) {
    throw new SignatureError('The key is a point of small order: without any private key, signatures can be made that fit it.', {
      found: 'a point of small order',
      expected: 'a public key that belongs to a private one',
      hint: 'Trust nobody who gave it; `icis-deploy keygen` makes a key.',
    });
  }
  const fields = `{"keytype":"ed25519","keyval":{"public":"${hex(raw)}"},"scheme":"ed25519"}`;
  return {
    pem: `-----BEGIN PUBLIC KEY-----\n${base64}\n-----END PUBLIC KEY-----\n`,
    keyId: await sha256Hex(utf8(fields)),
    key: await imported(raw),
  };
}

// Whether a key is one of the points whose order divides eight, in any encoding.
function isOfSmallOrder(raw) {
  const y = BigInt(`0x${hex(raw.slice().reverse())}`) & ~(1n << 255n);
  return [0n, 1n, FIELD - 1n, FIELD, FIELD + 1n, ORDER_8_Y, FIELD - ORDER_8_Y].includes(y);
}

// What is around the first key is for people, as in the Python device.
function bodyOf(text) {
  const start = typeof text === 'string' ? text.indexOf(BEGIN) : -1;
  const end = start < 0 ? -1 : text.indexOf(END, start);
  return end < 0 ? '' : text.slice(start + BEGIN.length, end).replace(/\s/g, '');
}

async function imported(raw) {
  const crypto = subtle();
  try {
    return await crypto.importKey('raw', raw, { name: 'Ed25519' }, false, ['verify']);
  } catch (error) {
    if (error?.name === 'DataError') {
      throw new SignatureError('The public key is no point that Ed25519 takes.', { cause: error, expected: 'an Ed25519 public key' });
    }
    throw new MissingDependencyError('This browser cannot check Ed25519 signatures, so no class update can be taken. Nothing was changed.', {
      found: error?.name ?? String(error),
      expected: 'WebCrypto with Ed25519',
      hint: 'Use Chrome or Edge 137, Firefox 129, Safari 17, Node 20, or a newer one.',
      cause: error,
    });
  }
}

/** Whether a signature over these bytes is by this key. */
export async function isSignedBy(key, signature, data) {
  return subtle().verify({ name: 'Ed25519' }, key.key, signature, data);
}
