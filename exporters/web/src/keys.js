// Public keys and their signatures: Ed25519 by WebCrypto, key ids as securesystemslib computes them.

import { decodeBase64, equalBytes, hex, sha256Hex, subtle, utf8 } from './bytes.js';
import { MissingDependencyError, SignatureError, shown } from './errors.js';

const MAX_KEY_BYTES = 1 << 12;
const SPKI_PREFIX = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
// No part of it takes what its neighbour takes: else blanks, which anyone can send, would be divided in every way.
const PEM = /^\s*-----BEGIN PUBLIC KEY-----\s([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*$/;

/**
 * An Ed25519 public key from PEM (SubjectPublicKeyInfo): `{pem, keyId, raw, verify}`.
 * Throws SignatureError where the text is none, MissingDependencyError where WebCrypto knows no Ed25519.
 */
export async function publicKeyFromPem(text) {
  const found = typeof text === 'string' && text.length <= MAX_KEY_BYTES ? PEM.exec(text) : null;
  let spki = new Uint8Array();
  try {
    spki = found === null ? spki : decodeBase64(found[1].replace(/\s/g, ''));
  } catch {
    // no base64: refused below
  }
  if (spki.length !== 44 || !equalBytes(spki.subarray(0, 12), Uint8Array.from(SPKI_PREFIX))) {
    throw new SignatureError('The text is not an Ed25519 public key in PEM form.', {
      found: shown(text),
      expected: 'a public key in PEM form',
      hint: '`icis-deploy keygen` makes one.',
    });
  }
  const raw = spki.slice(12);
  const fields = `{"keytype":"ed25519","keyval":{"public":"${hex(raw)}"},"scheme":"ed25519"}`;
  const base64 = found[1].replace(/\s/g, '');
  return {
    pem: `-----BEGIN PUBLIC KEY-----\n${base64}\n-----END PUBLIC KEY-----\n`,
    keyId: await sha256Hex(utf8(fields)),
    key: await imported(raw),
  };
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
