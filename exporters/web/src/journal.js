// The journal: what a device remembers, in the format of the Python device (icis_deploy/runtime/state/journal.py).

import { isSha256, sha256Hex, utf8 } from './bytes.js';
import { MAX_VERSION } from './class-update.js';
import { CorruptFileError } from './errors.js';
import { asBoolean, asCount, asInteger, asList, asNumber, asObject, asText, asTexts, asTime, checkFields, decodeText, dumps, Fraction, parseStrict, timeText } from './json.js';
import { originsFromJson } from './origins.js';

export const MAX_STATES = 8;
export const MAX_HISTORY = 32;
const [START, MIDDLE, END] = ['{"journal":', ',"sha256":"', '"}\n'];
const LINE_FIELDS = ['sequence', 'time', 'action', 'version', 'num_added', 'num_replaced', 'num_removed', 'class_name', 'payload_sha256', 'signed_by'];

export function initialJournal(bundle) {
  return {
    baseFingerprint: bundle.baseFingerprint,
    bundleSha256: bundle.sha256,
    states: [{ version: bundle.headVersion, slots: null, taught: [], origins: [] }],
    highestVersion: bundle.headVersion,
    lastSeen: null,
    disabled: [],
    trustVersion: 0,
    trustedKeys: null,
    rootKeys: [],
    rootThreshold: 1,
    history: [],
  };
}

export const currentState = (journal) => journal.states[journal.states.length - 1];
export const slotsName = (slots) => `slots-${slots.sha256}.safetensors`;

/** The bytes of a journal, to the byte those that the Python device writes. */
export async function serializeJournal(journal) {
  const fields = {
    schema_version: 1,
    base_fingerprint: journal.baseFingerprint,
    states: journal.states.map(({ version, slots, taught, origins }) => ({ version, slots, ...(taught.length ? { taught } : {}), ...(origins.length ? { origins } : {}) })),
    highest_version: journal.highestVersion,
    last_seen: journal.lastSeen === null ? null : timeText(journal.lastSeen),
    disabled: journal.disabled,
    trust_version: journal.trustVersion,
    trusted_keys: journal.trustedKeys,
    history: journal.history.map(({ changed_answers: share, ...line }) => ({ ...line, ...(share === undefined ? {} : { changed_answers: fraction(share) }) })),
    ...(journal.rootKeys.length ? { root_keys: journal.rootKeys, root_threshold: journal.rootThreshold } : {}),
    ...(journal.bundleSha256 === null ? {} : { bundle_sha256: journal.bundleSha256 }),
  };
  const text = dumps(fields);
  return utf8(`${START}${text}${MIDDLE}${await sha256Hex(utf8(text))}${END}`);
}

// A share is written with a point, whole or not, as it is read back.
function fraction(value) {
  const text = String(value);
  return new Fraction(/[.e]/.test(text) ? text : `${text}.0`);
}

/** The journal that these bytes hold. Throws CorruptFileError. */
export async function parseJournal(data) {
  try {
    const whole = decodeText(data);
    const end = whole.lastIndexOf(MIDDLE);
    if (!whole.startsWith(START) || !whole.endsWith(END) || end < 0) throw new SyntaxError('it is no journal');
    const text = whole.slice(START.length, end);
    if ((await sha256Hex(utf8(text))) !== whole.slice(end + MIDDLE.length, -END.length)) throw new SyntaxError('its SHA-256 is not the one that it states');
    return journalFromJson(asObject(parseStrict(text), 'journal'));
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
    throw new CorruptFileError(`The journal of the device is damaged: ${error.message}.`, {
      found: error.message,
      hint: "Delete this page's data to start again from the classes that the bundle was exported with; that forgets spent versions and replaced keys.",
      cause: error,
    });
  }
}

function journalFromJson(fields) {
  if (fields.schema_version !== 1) throw new TypeError('its schema version is another than 1');
  const states = asList(fields.states, 'states').map((state) => {
    const { version, slots, taught, origins } = asObject(state, 'state');
    if (asInteger(version, 'version') < 0) throw new TypeError('a version is below 0');
    if (slots !== null && (!isSha256(asObject(slots, 'slots').sha256) || asCount(slots.size_bytes, 'size_bytes') < 0)) throw new TypeError('its slots have no SHA-256');
    return { version, slots: slots === null ? null : { sha256: slots.sha256, size_bytes: slots.size_bytes }, taught: asTexts(taught ?? [], 'taught'), origins: originsFromJson(origins ?? []) };
  });
  const highest = asInteger(fields.highest_version, 'highest_version');
  const trustVersion = asInteger(fields.trust_version, 'trust_version');
  if (!states.length || states.length > MAX_STATES) throw new TypeError(`it names ${states.length} states`);
  if (states.some(({ version }) => version > highest) || highest > MAX_VERSION || trustVersion < 0 || trustVersion > MAX_VERSION) throw new TypeError('its versions contradict each other');
  const rootKeys = asTexts(fields.root_keys ?? [], 'root_keys');
  const rootThreshold = asInteger(fields.root_threshold ?? 1, 'root_threshold');
  if (rootThreshold < 1 || rootThreshold > Math.max(1, rootKeys.length)) throw new TypeError('its threshold is out of range');
  const bundleSha256 = fields.bundle_sha256 ?? null;
  if (bundleSha256 !== null && !isSha256(bundleSha256)) throw new TypeError('its bundle has no SHA-256');
  return {
    baseFingerprint: asText(fields.base_fingerprint, 'base_fingerprint'),
    bundleSha256,
    states,
    highestVersion: highest,
    lastSeen: fields.last_seen === null ? null : asTime(fields.last_seen, 'last_seen'),
    disabled: asTexts(fields.disabled, 'disabled'),
    trustVersion,
    trustedKeys: fields.trusted_keys === null ? null : asTexts(fields.trusted_keys, 'trusted_keys'),
    rootKeys,
    rootThreshold,
    history: asList(fields.history, 'history').map(lineFromJson),
  };
}

function lineFromJson(value) {
  const line = asObject(value, 'history');
  checkFields(line, LINE_FIELDS, ['changed_answers', 'allowed_past_guard', 'allowed_revoked', 'photos_sha256']);
  asCount(line.sequence, 'sequence', Number.MAX_SAFE_INTEGER - 1);
  for (const name of ['version', 'num_added', 'num_replaced', 'num_removed']) asInteger(line[name], name);
  for (const name of ['class_name', 'payload_sha256', 'signed_by']) if (line[name] !== null) asText(line[name], name);
  asTime(line.time, 'time');
  asText(line.action, 'action');
  for (const name of ['allowed_past_guard', 'allowed_revoked']) if (name in line) asBoolean(line[name], name);
  if ('photos_sha256' in line) asTexts(line.photos_sha256, 'photos_sha256');
  return 'changed_answers' in line ? { ...line, changed_answers: asNumber(line.changed_answers, 'changed_answers') } : { ...line };
}
