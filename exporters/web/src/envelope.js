// Signed files: DSSE envelopes (secure-systems-lab/dsse, protocol 1.0), as icis_deploy/updates/envelope.py reads them.
//
// 1. The signature covers the payload and its type, byte for byte; nothing else in the file is believed.
// 2. `verifySignature` comes before any reader of payloads.
// 3. The key id in a signature only chooses among trusted keys.

import { concat, decodeBase64, utf8 } from './bytes.js';
import { CorruptFileError, SignatureError, shown } from './errors.js';
import { asList, asObject, asText, isContainer, parseStrict } from './json.js';
import { isSignedBy } from './keys.js';

export const UPDATE_TYPE = 'application/vnd.icis-deploy.class-update.v1+safetensors';
export const TRUSTED_KEYS_TYPE = 'application/vnd.icis-deploy.trusted-keys.v1+json';
export const STATEMENT_TYPE = 'application/vnd.in-toto+json';
export const MAX_SIGNATURE_BYTES = 1 << 16;
const MAX_JSON_VALUES = 4096;

/**
 * The envelope that these bytes hold, `{payload, payloadType, signatures}`; its payload is neither verified nor parsed.
 * Throws CorruptFileError where they hold none of these types.
 */
export function parseEnvelope(data, types = [UPDATE_TYPE, TRUSTED_KEYS_TYPE]) {
  let envelope;
  try {
    const document = asObject(parseStrict(data, MAX_JSON_VALUES), 'envelope');
    const signatures = new Map();
    for (const entry of asList(document.signatures, 'signatures')) {
      const { keyid, sig } = asObject(entry, 'signature');
      // A key id that is no text is a stranger's, as for Python, whose dictionaries take no list and no object.
      if (keyid === undefined || isContainer(keyid)) throw new TypeError('a signature has no key id');
      if (signatures.has(keyid)) throw new SyntaxError('two signatures are by one key');
      // The specification lets a writer choose between both alphabets of base64.
      signatures.set(keyid, decodeBase64(asText(sig, 'sig').replaceAll('-', '+').replaceAll('_', '/')));
    }
    const payload = decodeBase64(asText(document.payload, 'payload'));
    envelope = { payload, payloadType: asText(document.payloadType, 'payloadType'), signatures };
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
    throw new CorruptFileError(`The file is not a class update: it is no DSSE envelope (${error.message}).`, {
      found: error.message,
      expected: 'a DSSE envelope',
      cause: error,
    });
  }
  if (!types.includes(envelope.payloadType)) {
    throw new CorruptFileError(`The envelope holds ${shown(envelope.payloadType)}; expected ${types.map((type) => shown(type, 80)).join(' or ')}.`, {
      found: shown(envelope.payloadType),
      expected: types,
    });
  }
  return envelope;
}

/**
 * The id of a trusted key that signed the payload; `threshold` different ones must have.
 * Throws SignatureError.
 */
export async function verifySignature(envelope, keys, threshold = 1) {
  const { payload, payloadType, signatures } = envelope;
  if (!signatures.size) {
    throw new SignatureError('The file is not signed.', {
      found: 'no signature',
      expected: 'a signature by a trusted key',
      hint: 'Sign it with `icis-deploy sign`.',
    });
  }
  const trusted = new Map(keys.map((key) => [key.keyId, key]));
  const signers = [...signatures.keys()].filter((keyId) => trusted.has(keyId));
  const found = shownKeys([...signatures.keys()]);
  if (!signers.length) {
    throw new SignatureError(`The file is signed by ${found}; trusted are ${shownKeys([...trusted.keys()])}.`, {
      found,
      expected: [...trusted.keys()],
      hint: 'Sign it with a trusted key.',
    });
  }
  if (signers.length < threshold) {
    throw new SignatureError(`The file is signed by ${signers.length} of the trusted keys; ${threshold} must sign it.`, {
      found: signers,
      expected: threshold,
      hint: 'Sign it with further keys.',
    });
  }
  const type = utf8(payloadType);
  const signed = concat([utf8(`DSSEv1 ${type.length} `), type, utf8(` ${payload.length} `), payload]);
  const accepted = [];
  for (const keyId of signers) {
    if (await isSignedBy(trusted.get(keyId), signatures.get(keyId), signed)) accepted.push(keyId);
  }
  if (accepted.length < threshold) {
    throw new SignatureError(`The signature by ${shownKeys(signers)} does not fit the file: it was changed after signing, or damaged.`, {
      found: signers,
      expected: 'a signature that fits the file',
      hint: 'Fetch it again.',
    });
  }
  return accepted[0];
}

function shownKeys(keyIds) {
  if (!keyIds.length) return 'none';
  const first = keyIds.slice(0, 4).map((keyId) => shown(keyId, 16)).join(', ');
  return keyIds.length > 4 ? `${first} and ${keyIds.length - 4} more` : first;
}
