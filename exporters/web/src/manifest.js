// What a bundle's manifest says (icis_deploy/bundle/manifest.py), and its files, fetched and compared with it.

import { sha256Hex, isSha256, utf8 } from './bytes.js';
import { checkNames, MAX_VERSION } from './class-update.js';
import { BundleError, CorruptFileError, shown } from './errors.js';
import { asBoolean, asCount, asInteger, asList, asNumber, asObject, asText, asTexts, dumps, parseStrict } from './json.js';
import { preprocessingFromJson } from './preprocessing.js';

export const MANIFEST_NAME = 'manifest.json';
export const MODEL_NAME = 'model.onnx';
export const SLOTS_NAME = 'slots.safetensors';
export const ARBITER_NAME = 'arbiter.safetensors';
export const REFERENCE_NAME = 'reference.safetensors';
export const INJECTED_NAME = 'injected.safetensors';
export const WEB_MODEL_NAME = 'web/model.onnx';
export const WEB_KEYS_NAME = 'web/keys.json';
export const SIGNATURE_NAME = 'bundle.dsse';
export const MAX_MANIFEST_BYTES = 1 << 26;
const MAX_SLOTS_BYTES = 2 ** 31;
const MAX_INPUT_VALUES = 2 ** 26;
const SCORE_KINDS = ['logits', 'probabilities', 'log-probabilities', 'sigmoid'];

/** What a manifest says. Throws BundleError where it is none of schema 1 to 3, or contradicts itself. */
export async function parseManifest(data) {
  try {
    const values = asObject(parseStrict(data), 'manifest');
    if (![1, 2, 3].includes(values.schema_version)) throw new TypeError(`its schema version is ${shown(values.schema_version, 20)}, this release reads 1 to 3`);
    const input = asObject(values.model_input, 'model_input');
    const limit = values.max_changed_answers ?? null;
    const bundle = {
      classNames: asTexts(values.class_names, 'class_names'),
      numSeen: asCount(values.num_seen, 'num_seen'),
      featureDim: asCount(values.feature_dim, 'feature_dim'),
      capacity: asCount(values.capacity, 'capacity'),
      headKind: asText(values.head_kind, 'head_kind'),
      baseFingerprint: asText(values.base_fingerprint, 'base_fingerprint'),
      headVersion: asInteger(values.head_version, 'head_version'),
      input: { name: asText(input.name, 'name'), shape: asList(input.shape, 'shape').map((length) => asCount(length, 'shape')), dtype: asText(input.dtype, 'dtype') },
      scoreKind: asText(values.score_kind, 'score_kind'),
      arbiter: asBoolean(values.arbiter ?? false, 'arbiter'),
      maxChangedAnswers: limit === null ? null : asNumber(limit, 'max_changed_answers'),
      preprocessing: values.preprocessing === null ? null : preprocessingFromJson(values.preprocessing),
      files: new Map(Object.entries(asObject(values.files, 'files')).map(([name, entry]) => [name, fileEntry(entry, name)])),
      sha256: await sha256Hex(data),
    };
    checkBundle(bundle);
    bundle.targetDigest = await targetDigest(bundle, values.preprocessing);
    return bundle;
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
    throw new BundleError(`The manifest is none that this release reads: ${error.message}.`, {
      found: error.message,
      expected: 'a manifest of schema 1 to 3',
      hint: 'Update icis-deploy, or export the bundle again.',
      cause: error,
    });
  }
}

function fileEntry(value, name) {
  const { sha256, size_bytes: size } = asObject(value, 'files');
  if (!isSha256(sha256)) throw new TypeError('files: a SHA-256 is none');
  if (!/^[^/\\\0][^\\\0]*$/.test(name) || name.split('/').some((part) => part === '' || part === '.' || part === '..')) throw new TypeError('files: a name is no plain path inside the bundle');
  return { sha256, sizeBytes: asCount(size, 'files', 2 ** 53 - 1) };
}

function checkBundle(bundle) {
  const { classNames, numSeen, featureDim, capacity, headKind, input, headVersion, files } = bundle;
  checkNames(classNames);
  const fits =
    numSeen >= 1 && numSeen <= classNames.length &&
    featureDim >= 1 && ['fused', 'updatable'].includes(headKind) && (headKind === 'updatable') === capacity > 0 &&
    4 * capacity * (featureDim + 1) <= MAX_SLOTS_BYTES &&
    headVersion >= 0 && headVersion <= MAX_VERSION &&
    input.shape.every((length) => length >= 1) && input.shape.reduce((product, length) => product * length, 1) <= MAX_INPUT_VALUES &&
    SCORE_KINDS.includes(bundle.scoreKind) && !(bundle.arbiter && bundle.scoreKind === 'sigmoid') &&
    (bundle.maxChangedAnswers === null || (bundle.maxChangedAnswers >= 0 && bundle.maxChangedAnswers <= 1));
  if (!fits) throw new TypeError('its fields contradict each other, or are out of range');
  const required = [MODEL_NAME, ...(capacity ? [SLOTS_NAME] : []), ...(bundle.arbiter ? [ARBITER_NAME] : []), ...(bundle.maxChangedAnswers === null ? [] : [REFERENCE_NAME])];
  const missing = required.filter((name) => !files.has(name));
  if (missing.length) throw new TypeError(`it does not name ${missing}`);
}

// Numbers are written as they were read, so this is the digest that Python makes of the same manifest.
async function targetDigest(bundle, preprocessing) {
  const values = {
    model_sha256: bundle.files.get(MODEL_NAME).sha256,
    base_fingerprint: bundle.baseFingerprint,
    feature_dim: bundle.featureDim,
    preprocessing,
  };
  return sha256Hex(utf8(dumps(values)));
}

/**
 * A file of the bundle, compared with what the manifest states.
 * @param {(name: string, maxBytes: number) => Promise<Uint8Array>} read
 */
export async function readStated(read, bundle, name) {
  const entry = bundle.files.get(name);
  if (entry === undefined) {
    throw new BundleError(`The bundle holds no ${name}.`, {
      where: name,
      hint: 'Export it with `icis-deploy export --target web`.',
    });
  }
  const data = await read(name, entry.sizeBytes);
  const sha256 = await sha256Hex(data);
  if (data.length !== entry.sizeBytes || sha256 !== entry.sha256) {
    throw new CorruptFileError(`${name} has ${data.length} bytes and SHA-256 ${sha256.slice(0, 16)}…; the manifest states ${entry.sizeBytes} bytes and ${entry.sha256.slice(0, 16)}…. The file was changed or damaged.`, {
      found: [data.length, sha256],
      expected: [entry.sizeBytes, entry.sha256],
      where: name,
      hint: 'Fetch the bundle again; where a cache stands between, clear it.',
    });
  }
  return data;
}
