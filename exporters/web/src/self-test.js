// The self-test: the model runs once on a seeded input, and every slot's logit is compared with its row. It is run
// before a change is committed and when a bundle is opened (icis_deploy/runtime/changes/self_test.py).

import { NUM_STATISTICS } from './class-update.js';
import { quoted, SelfTestError } from './errors.js';
import { randomBytes } from './random.js';
import { SlotTable } from './slots.js';

const TOLERANCE = 1e-3; // of the magnitudes that a logit is a sum of
const SLACK = 1e-3; // of a logit that is recovered from probabilities
const NUM_SEEDS = 4;
const PERIOD = 16381;
const LEAST_PROBABILITY = 1e-30;
const LEAST_SIGMOID = 1e-4;
const [TINY, GREATEST] = [1e-12, 3.4028234663852886e38];

function seededInput({ shape, dtype }, seed) {
  const levels = randomBytes(Math.ceil(PERIOD / 8));
  const size = shape.reduce((product, length) => product * length, 1);
  const start = 16 * ((401 * seed) % 1023);
  const Values = dtype === 'uint8' ? Uint8Array : Float32Array;
  return Values.from({ length: size }, (_, index) => {
    const level = levels[(start + index) % PERIOD];
    return dtype === 'uint8' ? level : level * (2 / 255) - 1;
  });
}

/** Throws SelfTestError where a slot does not hold its row. */
export async function verifyComputed(session, bundle, table, { seed = 0, rowLengths = null } = {}) {
  const first = Number(BigInt(seed) % 1023n);
  for (let offset = 0; offset < NUM_SEEDS; offset += 1) {
    const input = seededInput(bundle.input, first + offset);
    const { scores, features } = await session.run(input, 1, table, { withFeatures: true });
    if (!features.some((value) => value !== 0)) continue;
    const seenLogits = bundle.scoreKind === 'sigmoid' ? null : await recovered(session, bundle, input, scores, table);
    if (seenLogits !== null) compare(bundle, table, features, seenLogits, rowLengths);
    else if (bundle.scoreKind === 'sigmoid') compareSigmoid(bundle, table, features, scores);
    return;
  }
  throw new SelfTestError(`The model gives features that are all zero for ${NUM_SEEDS} seeded inputs, so its slots cannot be tested.`, {
    found: 'features that are all zero',
    hint: "Check the model's input in the bundle's manifest.",
  });
}

// The model's logits; of probabilities they are recovered by a second run, in which the first slot has a known logit and
// all others are empty. Null where no baked class shows in both: then the scale of the slots is not known.
async function recovered(session, bundle, input, scores, table) {
  if (bundle.scoreKind === 'logits') return { logits: Float64Array.from(scores), slack: 0, floor: -Infinity };
  const numBaked = bundle.classNames.length;
  const logs = (values) => Float64Array.from(values, (value) => (bundle.scoreKind === 'probabilities' ? Math.log(Math.max(value, LEAST_PROBABILITY)) : value));
  const found = logs(scores);
  const floor = Math.log(LEAST_PROBABILITY);
  for (let known = 0; known <= 2000; known = known > 0 ? -known : 100 - known) { // a probability shows logits 69 below the greatest
    const probe = SlotTable.empty(table.capacity, table.featureDim);
    probe.bias[0] = known;
    const shown = logs((await session.run(input, 1, probe)).scores);
    let anchor = -1;
    for (let index = 0; index < numBaked; index += 1) {
      if (shown[index] > floor && found[index] > floor && (anchor < 0 || found[index] > found[anchor])) anchor = index;
    }
    if (shown[numBaked] <= floor || anchor < 0) continue;
    const shift = shown[anchor] - shown[numBaked] + known - found[anchor];
    return { logits: found.map((value) => value + shift), slack: SLACK, floor: floor + shift };
  }
  return null;
}

function compare(bundle, table, features, { logits, slack, floor }, rowLengths) {
  const numBaked = bundle.classNames.length;
  const statistics = table.hasArbiter ? seenStatistics(logits.subarray(0, bundle.numSeen), features, rowLengths) : null;
  const allShow = !Number.isFinite(floor) || logits.subarray(0, bundle.numSeen).every((logit) => logit > floor + 1);
  const wrong = [];
  for (let slot = 0; slot < table.capacity; slot += 1) {
    let { expected, magnitude } = product(table, slot, features);
    const coefficients = table.coefficients(slot);
    if (statistics !== null && coefficients.some((value) => value !== 0)) {
      if (!allShow) continue;
      for (let index = 0; index < NUM_STATISTICS; index += 1) {
        expected += coefficients[index] * statistics[index];
        magnitude += Math.abs(coefficients[index]) * Math.max(1, Math.abs(statistics[index]));
      }
    }
    const found = Math.max(logits[numBaked + slot], floor);
    if (!(Math.abs(found - Math.max(expected, floor)) <= TOLERANCE * magnitude + slack + 1e-30)) wrong.push([slot, found, expected]);
  }
  if (wrong.length) throw mismatch(table, wrong);
}

function compareSigmoid(bundle, table, features, scores) {
  const wrong = [];
  for (let slot = 0; slot < table.capacity; slot += 1) {
    const { expected, magnitude } = product(table, slot, features);
    const found = Math.log(Math.max(scores[bundle.classNames.length + slot], LEAST_SIGMOID));
    const log = Math.max(-Math.log1p(Math.exp(-Math.max(expected, -700))), Math.log(LEAST_SIGMOID));
    if (!(Math.abs(found - log) <= TOLERANCE * magnitude + SLACK)) wrong.push([slot, found, log]);
  }
  if (wrong.length) throw mismatch(table, wrong);
}

function product(table, slot, features) {
  const row = table.row(slot);
  let expected = table.bias[slot];
  let magnitude = Math.abs(expected);
  row.forEach((value, index) => {
    expected += value * features[index];
    magnitude += Math.abs(value * features[index]);
  });
  return { expected, magnitude };
}

// What an arbiter's offset follows from (icis_deploy/head/arbiter.py).
function seenStatistics(seen, features, rowLengths) {
  const mean = seen.reduce((total, logit) => total + logit, 0) / seen.length;
  const variance = seen.reduce((total, logit) => total + (logit - mean) ** 2, 0) / seen.length;
  const squared = features.reduce((total, value) => total + value * value, 0);
  const top = seen.indexOf(Math.max(...seen));
  const log = (value) => Math.log(Math.min(Math.max(value, TINY), GREATEST));
  return [seen[top], mean, log(variance), log(squared), rowLengths[top]];
}

function mismatch(table, wrong) {
  const names = wrong.map(([slot]) => table.classNames[slot] ?? `(empty slot ${slot})`);
  const [[, found, expected]] = wrong;
  return new SelfTestError(`${wrong.length} of ${table.capacity} slots do not hold their rows: ${quoted(names)}. The first gave ${found.toPrecision(6)} in the self-test; expected ${expected.toPrecision(6)}. Nothing was changed.`, {
    found,
    expected,
    where: names[0],
  });
}

