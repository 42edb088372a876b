// `node --test golden.test.mjs`: the package reads the files that every release reads (tests/golden), writes journals
// and slots byte for byte as Python does, and reads JSON as strictly. Needs nothing but Node.

import assert from 'node:assert/strict';
import { readFile, readdir } from 'node:fs/promises';
import { test } from 'node:test';

const golden = new URL('../../golden/', import.meta.url);
const source = (name) => import(new URL(`../../../exporters/web/src/${name}`, import.meta.url));
const bytes = async (name) => new Uint8Array(await readFile(new URL(name, golden)));
const text = async (name) => readFile(new URL(name, golden), 'utf8');

const { parseEnvelope, verifySignature, STATEMENT_TYPE } = await source('envelope.js');
const { parseContent } = await source('class-update.js');
const { publicKeyFromPem } = await source('keys.js');
const { parseJournal, serializeJournal } = await source('journal.js');
const { parseSlots, serializeSlots, SlotTable } = await source('slots.js');
const { parseManifest } = await source('manifest.js');
const { parseStrict, dumps, Fraction } = await source('json.js');
const { decodeBase64 } = await source('bytes.js');
const { memoryStorage } = await source('storage.js');
const errors = await source('errors.js');

const NAMES = ['okapi', 'Bärtierchen 水熊'];
const keyOf = async (name) => publicKeyFromPem(await text(name));
const verified = async (name, keys, threshold = 1) => {
  const envelope = parseEnvelope(await bytes(name));
  await verifySignature(envelope, keys, threshold);
  return parseContent(envelope, { isVerified: true });
};

for (const [name, key, expected] of [
  ['v1/class-update.dsse', 'v1/release-key.pub', { added: NAMES, version: 3, expires: Date.UTC(2100, 0, 1), seed: 5 }],
  ['v3/class-update.dsse', 'v3/release-key.pub', { added: NAMES }],
  ['v4/following.dsse', 'v4/release-key.pub', {}],
  ['v4/complete.dsse', 'v4/release-key.pub', { complete: true }],
]) {
  test(`the class update ${name}`, async () => {
    const update = await verified(name, [await keyOf(key)]);
    for (const [field, value] of Object.entries(expected)) assert.deepEqual(update[field], value, field);
    await parseContent(parseEnvelope(await bytes(name)), { isVerified: false }); // its own hashes fit
  });
}

test('rows of a golden update are what is written next to it', async () => {
  for (const version of ['v1', 'v3']) {
    const expected = JSON.parse(await text(`${version}/expected.json`)).rows.flat().map(Math.fround);
    const update = await verified(`${version}/class-update.dsse`, [await keyOf(`${version}/release-key.pub`)]);
    assert.deepEqual([...update.rows], expected);
  }
});

test('trusted keys, with and without roles', async () => {
  const release = await keyOf('v1/release-key.pub');
  assert.equal(release.keyId, JSON.parse(await text('v1/expected.json')).key_ids[0]);
  const plain = await verified('v1/trusted-keys.dsse', [release]);
  assert.deepEqual([plain.publicKeys, plain.version], [[await text('v1/next-key.pub')], 1]);
  const roots = [await keyOf('v4/root-0.pub'), await keyOf('v4/root-1.pub')];
  const roles = await verified('v4/trusted-keys.dsse', roots, 2);
  assert.deepEqual([roles.rootKeys.length, roles.rootThreshold, roles.version], [2, 2, 2]);
  await assert.rejects(verified('v4/trusted-keys.dsse', roots.slice(1), 2), errors.SignatureError);
});

test('the signature of a bundle', async () => {
  const envelope = parseEnvelope(await bytes('v4/bundle.dsse'), [STATEMENT_TYPE]);
  await verifySignature(envelope, [await keyOf('v4/release-key.pub')]);
  assert.throws(() => parseEnvelope(new TextEncoder().encode('{}')), errors.CorruptFileError);
});

test('journals are read, and written byte for byte as they were', async () => {
  for (const name of ['v1/bundle/state/journal.json', 'v2/journal.json', 'v3/bundle/state/journal.json', 'v4/journal.json']) {
    const data = await bytes(name);
    assert.deepEqual(await serializeJournal(await parseJournal(data)), data, name);
  }
});

test('every changed byte of a journal is noticed', async () => {
  const data = await bytes('v4/journal.json');
  for (let index = 0; index < data.length; index += 1) {
    const changed = data.slice();
    changed[index] ^= 1;
    await assert.rejects(parseJournal(changed), errors.CorruptFileError, String(index));
  }
});

test('slots are read, and written byte for byte as they were', async () => {
  for (const version of ['v1', 'v3']) {
    const bundle = await parseManifest(await bytes(`${version}/bundle/manifest.json`));
    for (const name of (await readdir(new URL(`${version}/bundle/state/`, golden))).filter((each) => each.startsWith('slots-'))) {
      const data = await bytes(`${version}/bundle/state/${name}`);
      const table = parseSlots(data, bundle);
      assert.deepEqual(table.filledNames, NAMES);
      assert.deepEqual(serializeSlots(table), data);
      assert.throws(() => parseSlots(data.subarray(0, -1), bundle), errors.CorruptFileError);
    }
  }
});

test('manifests of every schema', async () => {
  const { targetDigest } = await parseManifest(await bytes('v1/bundle/manifest.json'));
  assert.equal(targetDigest, '2e307c91040ee4fe8d79375e5207994d6a8a69bb2583702347457fa28977fe83'); // as Python's
  for (const name of ['v1/bundle/manifest.json', 'v2/manifest.json', 'v3/bundle/manifest.json']) {
    const data = await bytes(name);
    assert.ok((await parseManifest(data)).classNames.length > 0, name);
    await assert.rejects(parseManifest(data.subarray(0, -3)), errors.BundleError);
  }
});

test('JSON is read as strictly as in Python', () => {
  for (const wrong of ['', '{"a":1,"a":2}', '[1,]', '{"a":1,}', 'NaN', '-Infinity', '01', '1.', '.5', '+1', '"\t"', '"\\x"', '"\\ud800"', '\ufeff{}', '[1] 2', '[', '"', 'tru', '['.repeat(9000)]) {
    assert.throws(() => parseStrict(wrong), SyntaxError, wrong.slice(0, 20));
  }
  assert.throws(() => parseStrict(Uint8Array.of(0x22, 0xff, 0x22)), SyntaxError);
  assert.throws(() => parseStrict(`[${'[],'.repeat(50)}[]]`, 20), SyntaxError);
  const value = parseStrict(' {"__proto__": [9007199254740993, 1.0, -0, true, null, "\\u00e9\\ud83d\\ude00\\n"]} ');
  assert.deepEqual(value.__proto__, [9007199254740993n, new Fraction('1.0'), 0, true, null, 'é😀\n']);
  assert.equal(dumps({ b: [1n, new Fraction('1e-05')], a: 'é\u007f' }), '{"a":"\\u00e9\\u007f","b":[1,1e-05]}');
});

test('base64 takes nothing but base64', () => {
  for (const wrong of ['A', 'AA', 'AA=', 'A===', '====', 'AA==AA==', 'A A=', 'AAA\n', 'AAÿ=']) assert.throws(() => decodeBase64(wrong), SyntaxError, wrong);
  assert.deepEqual([...decodeBase64('+/8=')], [251, 255]);
});

test('a storage commits on the journal that was read, or not at all', async () => {
  const storage = memoryStorage();
  const [first, second] = [Uint8Array.of(1), Uint8Array.of(2)];
  assert.equal(await storage.commit({ expected: null, journal: first, put: new Map([['a', first]]), remove: [] }), true);
  assert.equal(await storage.commit({ expected: null, journal: second, put: new Map([['a', second]]), remove: [] }), false);
  assert.deepEqual([await storage.read('journal.json'), await storage.read('a')], [first, first]);
  assert.equal(await storage.commit({ expected: first, journal: second, put: new Map(), remove: ['a'] }), true);
  assert.equal(await storage.read('a'), null);
});

test('an empty slot has a bias with which it cannot win', () => {
  const table = SlotTable.empty(2, 3);
  assert.deepEqual([...table.bias], [-60000, -60000]);
  assert.deepEqual(table.filledNames, []);
});

test('the words of numpy.random.PCG64(0), which sketches of a reference are made of', async () => {
  const { randomBytes } = await source('random.js');
  const view = new DataView(randomBytes(3).buffer);
  const words = [0, 8, 16].map((offset) => view.getBigUint64(offset, true));
  assert.deepEqual(words, [0xa30febcfd9c2825fn, 0x4510bdf882d9d721n, 0x0a7d3da94ecde8b8n]);
});
