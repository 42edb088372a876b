// What a payload holds: a class update (icis_deploy/updates/payload.py, icis_deploy/head/class_update.py) or a set of
// trusted keys (icis_deploy/updates/trusted_keys.py). Call `verifySignature` first.

import { isSha256, readSafetensors, sha256Hex, utf8 } from './bytes.js';
import { CorruptFileError, ICISDeployError, quoted, shown } from './errors.js';
import { asBoolean, asInteger, asList, asObject, asText, asTexts, asTime, Fraction, parseStrict } from './json.js';
import { TRUSTED_KEYS_TYPE } from './envelope.js';
import { publicKeyFromPem } from './keys.js';

export const MAX_VERSION = 2n ** 63n - 1n;
export const MAX_NAME_BYTES = 1 << 10;
export const NUM_STATISTICS = 5;
export const MAX_TRUSTED_KEYS = 16;
export const MAX_TRUSTED_KEYS_BYTES = 16 << 12;
const MAX_ROW_VALUE = Math.fround(1e30);
const MAX_TARGETS = 64;
const FIELDS = ['schema_version', 'base_fingerprint', 'rows_sha256', 'added', 'replaced', 'removed', 'version', 'expires', 'probe_seed', 'provenance'];
const FIELDS_OF_SCHEMA = {
  1: FIELDS,
  2: [...FIELDS, 'arbiter_sha256'],
  3: [...FIELDS, 'arbiter_sha256', 'follows', 'complete', 'targets'],
};
const KEY_FIELDS = ['schema_version', 'public_keys', 'version', 'expires'];
const KEY_FIELDS_OF_SCHEMA = { 1: KEY_FIELDS, 2: [...KEY_FIELDS, 'root_keys', 'root_threshold', 'highest_version'] };

/** What an envelope holds: a class update or trusted keys, by their `kind`. Throws CorruptFileError. */
export async function parseContent(envelope, { isVerified }) {
  const read = envelope.payloadType === TRUSTED_KEYS_TYPE ? parseTrustedKeys : parseUpdate;
  try {
    return await read(envelope.payload, isVerified);
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError || error instanceof RangeError) && !(error instanceof ICISDeployError)) throw error;
    if (error instanceof CorruptFileError || error.name === 'MissingDependencyError') throw error;
    const what = read === parseUpdate ? 'class update' : 'file of trusted keys';
    throw new CorruptFileError(`The ${what} is damaged, or breaks its own rules: ${error.message}`, { found: error.message, cause: error });
  }
}

async function parseUpdate(payload, isVerified) {
  const { tensors, metadata } = readSafetensors(payload);
  if (typeof metadata.class_update !== 'string') throw new TypeError('its header holds no class update; it is another kind of file.');
  const fields = asObject(parseStrict(metadata.class_update), 'class_update');
  checkSchema(fields, FIELDS_OF_SCHEMA, 'class update');
  if (fields.schema_version === 2 && fields.arbiter_sha256 === null) throw new TypeError('it states no SHA-256 of its arbiter.');
  const names = (fields.arbiter_sha256 ?? null) === null ? ['rows'] : ['arbiter', 'rows'];
  if (String(Object.keys(tensors).sort()) !== String(names) || names.some((name) => tensors[name].dtype !== 'F32')) {
    throw new TypeError(`it holds the tensors ${Object.keys(tensors).slice(0, 4).map((name) => shown(name))}; expected ${names} of float32 alone.`);
  }
  if (!isVerified) await checkHashes(tensors, fields);
  const { rows, arbiter = null } = tensors;
  const update = {
    kind: 'class update',
    baseFingerprint: asText(fields.base_fingerprint, 'base_fingerprint'),
    added: asTexts(fields.added, 'added'),
    replaced: asTexts(fields.replaced, 'replaced'),
    removed: asTexts(fields.removed, 'removed'),
    version: asInteger(fields.version, 'version'),
    expires: fields.expires === null ? null : asTime(fields.expires, 'expires'),
    seed: asInteger(fields.probe_seed, 'probe_seed'),
    follows: followedState('follows' in fields ? fields.follows : null),
    complete: asBoolean('complete' in fields ? fields.complete : false, 'complete'),
    targets: asTexts('targets' in fields ? fields.targets : [], 'targets'),
    rows: rows.values,
    rowShape: rows.shape,
    arbiter: arbiter === null ? null : arbiter.values,
  };
  checkJson(asObject(fields.provenance, 'provenance'));
  checkUpdate(update, arbiter);
  return { ...update, classNames: [...update.added, ...update.replaced], featureDim: rows.shape[1] - 1 };
}

function checkSchema(fields, fieldsOfSchema, what) {
  const expected = Number.isSafeInteger(fields.schema_version) ? fieldsOfSchema[fields.schema_version] : undefined;
  if (expected === undefined) {
    throw new CorruptFileError(`The ${what} has schema version ${shown(fields.schema_version)}; this release reads ${Object.keys(fieldsOfSchema)}.`, {
      found: shown(fields.schema_version),
      expected: Object.keys(fieldsOfSchema),
      hint: 'Update icis-deploy.',
    });
  }
  const difference = [...Object.keys(fields).filter((name) => !expected.includes(name)), ...expected.filter((name) => !(name in fields))];
  if (difference.length) throw new TypeError(`its fields differ from schema ${fields.schema_version} in ${difference.slice(0, 8).map((name) => shown(name))}.`);
}

async function checkHashes(tensors, fields) {
  for (const [name, { values }] of Object.entries(tensors)) {
    const found = await sha256Hex(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    if (found !== fields[`${name}_sha256`]) {
      throw new CorruptFileError(`The class update's ${name} has another SHA-256 than it states; the file is damaged.`, {
        found,
        expected: shown(fields[`${name}_sha256`], 64),
      });
    }
  }
}

function followedState(value) {
  if (value === null) return null;
  const { version, digest, ...others } = asObject(value, 'follows');
  if (Object.keys(others).length || asInteger(version, 'follows') < 0 || version > MAX_VERSION || !isSha256(digest)) {
    throw new TypeError('it follows no version and digest.');
  }
  return { version, digest };
}

// A number beyond float64 is infinite in every reader, and no JSON when it is written again.
function checkJson(value) {
  if (value instanceof Fraction) {
    if (!Number.isFinite(value.value)) throw new TypeError('its provenance is not plain JSON.');
  } else if (typeof value === 'object' && value !== null) {
    Object.values(value).forEach(checkJson);
  }
}

export function checkNames(names) {
  const found = new Set();
  for (const name of names) {
    if (!name || utf8(name).length > MAX_NAME_BYTES) throw new TypeError(`a class has the name ${shown(name)}; expected 1 to ${MAX_NAME_BYTES} bytes.`);
    if (found.has(name)) throw new TypeError(`the class ${shown(name)} is named twice.`);
    found.add(name);
  }
}

function checkUpdate(update, arbiter) {
  const { added, replaced, removed, rows, rowShape, version, seed, targets, complete, follows } = update;
  checkNames([...added, ...replaced, ...removed]);
  if (rowShape.length !== 2 || rowShape[0] !== added.length + replaced.length || rowShape[1] < 2) {
    throw new TypeError(`it has rows of shape [${rowShape}] for ${added.length} added and ${replaced.length} replaced classes.`);
  }
  if (!(added.length || replaced.length || removed.length || complete)) throw new TypeError('it adds, replaces and removes no class.');
  if (arbiter !== null && String(arbiter.shape) !== String([rowShape[0], NUM_STATISTICS])) throw new TypeError(`its arbiter has shape [${arbiter.shape}].`);
  for (const values of [rows, arbiter?.values ?? []]) {
    // NaN is not less than anything.
    if (!values.every((value) => Math.abs(value) <= MAX_ROW_VALUE)) throw new TypeError('it holds a value above 1e30, or none, and logits would overflow float32.');
  }
  if (!isSha256(update.baseFingerprint)) throw new TypeError('its base fingerprint is no SHA-256.');
  if (version < 1 || version > MAX_VERSION || seed < 0) throw new TypeError(`its version ${version} or its seed ${seed} is out of range.`);
  if (new Set(targets).size > MAX_TARGETS || !targets.every(isSha256)) throw new TypeError(`it names ${targets.length} targets; expected at most ${MAX_TARGETS} digests.`);
  if (complete && (replaced.length || removed.length || follows !== null)) {
    throw new TypeError(`it is complete, and replaces or removes ${quoted([...replaced, ...removed])} or follows a state.`);
  }
}

async function parseTrustedKeys(payload) {
  if (payload.length > MAX_TRUSTED_KEYS_BYTES) throw new TypeError(`it has ${payload.length} bytes; at most ${MAX_TRUSTED_KEYS_BYTES} are read.`);
  const fields = asObject(parseStrict(payload), 'trusted keys');
  checkSchema(fields, KEY_FIELDS_OF_SCHEMA, 'set of trusted keys');
  const { version, expires, highest_version: highest = null, root_keys: rootKeys = [], root_threshold: threshold = 1 } = fields;
  const keys = await distinctKeys(asTexts(fields.public_keys, 'public_keys'));
  const roots = await distinctKeys(asTexts(rootKeys, 'root_keys'));
  if (keys.length < 1 || keys.length > MAX_TRUSTED_KEYS || roots.length > MAX_TRUSTED_KEYS) throw new TypeError(`it has ${keys.length} keys and ${roots.length} root keys.`);
  if (asInteger(threshold, 'root_threshold') < 1 || threshold > Math.max(1, roots.length)) throw new TypeError(`${threshold} of ${roots.length} root keys are to sign.`);
  if (roots.some((root) => keys.includes(root))) throw new TypeError('a key is both a root key and one that signs updates.');
  if (asInteger(version, 'version') < 1 || version > MAX_VERSION) throw new TypeError(`its version ${version} is out of range.`);
  if (highest !== null && (asInteger(highest, 'highest_version') < 0 || highest > MAX_VERSION)) throw new TypeError(`its highest version ${highest} is out of range.`);
  return {
    kind: 'trusted keys',
    version,
    expires: expires === null ? null : asTime(expires, 'expires'),
    publicKeys: keys,
    rootKeys: roots,
    rootThreshold: threshold,
    highestVersion: highest,
  };
}

async function distinctKeys(texts) {
  const pems = [];
  for (const text of texts.slice(0, MAX_TRUSTED_KEYS + 1)) pems.push((await publicKeyFromPem(text)).pem);
  return [...new Set(pems)];
}
