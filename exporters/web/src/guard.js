// The guard: whether a change of classes would take answers from the classes that a device knows, by the rules of the
// Python device (icis_deploy/runtime/changes/guard.py). The bundle carries features of images of known classes; they
// are multiplied with the rows of the slots, and no model runs.

import { readSafetensors } from './bytes.js';
import { NUM_STATISTICS } from './class-update.js';
import { CorruptFileError, GuardError, shown } from './errors.js';
import { randomBytes } from './random.js';

const COPY_COSINE = 0.995;
const SKETCH_DIM = 64;
const TINY = 1.1754943508222875e-38;

/** The reference of a bundle. Throws CorruptFileError where it is none for this head. */
export function parseReference(data, { featureDim, numSeen }) {
  try {
    const { tensors } = readSafetensors(data);
    const { features, statistics, answers, sketches } = tensors;
    const count = answers?.values.length;
    const width = Math.min(featureDim, SKETCH_DIM);
    const fits =
      Object.keys(tensors).length === (sketches === undefined ? 3 : 4) && count > 0 &&
      features?.dtype === 'F16' && String(features.shape) === String([count, featureDim]) &&
      statistics?.dtype === 'F32' && String(statistics.shape) === String([count, NUM_STATISTICS]) &&
      answers.dtype === 'I32' && answers.shape.length === 1 && answers.values.every((answer) => answer >= 0 && answer < numSeen) &&
      (sketches === undefined || (sketches.dtype === 'F16' && String(sketches.shape) === String([numSeen, width]))) &&
      [features, statistics, sketches].every((tensor) => tensor === undefined || tensor.values.every(Number.isFinite));
    if (!fits) throw new TypeError(`it is no reference for ${numSeen} classes of ${featureDim} features`);
    return { features: features.values, statistics: statistics.values, answers: answers.values, sketches: sketches?.values ?? null, count };
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
    throw new CorruptFileError(`The reference is damaged: ${error.message}.`, { found: error.message, hint: 'Fetch the bundle again.', cause: error });
  }
}

export class Guard {
  #bundle;
  #reference;
  #fixed;
  #mean;
  #directions;

  /**
   * @param {object} bundle What the manifest says.
   * @param {object} reference From `parseReference`.
   * @param {SlotTable | null} baked Rows that were baked in after the original's.
   */
  constructor(bundle, reference, baked) {
    this.#bundle = bundle;
    this.#reference = reference;
    this.#fixed = Float64Array.from({ length: reference.count }, (_, image) => reference.statistics[image * NUM_STATISTICS]);
    for (const slot of baked?.filled ?? []) {
      this.#logits(baked, slot).forEach((logit, image) => {
        if (!(logit <= this.#fixed[image])) this.#fixed[image] = logit;
      });
    }
    if (reference.sketches !== null) this.#sketch();
  }

  #sketch() {
    const { sketches } = this.#reference;
    const width = sketches.length / this.#bundle.numSeen;
    this.#mean = new Float64Array(width);
    sketches.forEach((value, index) => {
      this.#mean[index % width] += value / this.#bundle.numSeen;
    });
    this.#directions = Array.from({ length: this.#bundle.numSeen }, (_, seen) => unit(sketches.slice(seen * width, (seen + 1) * width).map((value, index) => value - this.#mean[index])));
  }

  /** The share of the answers that a change changes. Throws GuardError over the limit, unless `allowed`. */
  judge(before, after, written, { allowed }) {
    const changed = this.changedAnswers(before, after, written);
    const isRefused = changed.share > changed.limit || changed.copies.length > 0;
    if (isRefused && !allowed) this.#refuse(changed);
    return { changed_answers: changed.share, ...(isRefused ? { allowed_past_guard: true } : {}) };
  }

  changedAnswers(before, after, written) {
    const names = new Set(written);
    const [old, next] = [this.#winners(before), this.#winners(after)];
    const staying = new Set(after.filledNames.filter((name) => !names.has(name)));
    const takers = new Map();
    next.forEach((name, image) => {
      const former = old[image];
      // What the change itself replaces or removes is not counted: its publisher says that these answers change.
      if (name === former || !(former === null || staying.has(former))) return;
      const taker = name ?? this.#bundle.classNames[this.#reference.answers[image]];
      takers.set(taker, (takers.get(taker) ?? 0) + 1);
    });
    const numChanged = [...takers.values()].reduce((total, count) => total + count, 0);
    return {
      numReference: this.#reference.count,
      numChanged,
      share: numChanged / this.#reference.count,
      limit: this.#bundle.maxChangedAnswers,
      takers: [...takers].sort((left, right) => right[1] - left[1] || (left[0] < right[0] ? -1 : 1)),
      copies: this.#copies(after, after.filled.filter((slot) => names.has(after.classNames[slot]))),
    };
  }

  // The logits of one slot on all reference images.
  #logits(table, slot) {
    const { features, statistics, count } = this.#reference;
    const [row, coefficients] = [table.row(slot), table.coefficients(slot)];
    const dim = row.length;
    return Float64Array.from({ length: count }, (_, image) => {
      let logit = table.bias[slot];
      for (let index = 0, at = image * dim; index < dim; index += 1, at += 1) logit += row[index] * features[at];
      for (let index = 0; index < NUM_STATISTICS; index += 1) logit += coefficients[index] * statistics[image * NUM_STATISTICS + index];
      return Math.fround(logit);
    });
  }

  // Whose answer each image has: the name of a class in a slot, or null for any other.
  #winners(table) {
    const greatest = this.#fixed.slice();
    const winners = new Array(greatest.length).fill(null);
    for (const slot of table.filled) {
      this.#logits(table, slot).forEach((logit, image) => {
        // What is no number wins, as it does in a model's answers.
        if (Number.isNaN(greatest[image]) || logit <= greatest[image]) return;
        greatest[image] = logit;
        winners[image] = table.classNames[slot];
      });
    }
    return winners;
  }

  #copies(table, slots) {
    if (this.#directions === undefined || !slots.length) return [];
    const signs = sketching(this.#bundle.featureDim);
    const width = this.#mean.length;
    const found = [];
    for (const slot of slots) {
      const sketch = new Float64Array(width);
      table.row(slot).forEach((value, feature) => {
        for (let index = 0; index < width; index += 1) sketch[index] += value * signs[feature * width + index];
      });
      const direction = unit(sketch.map((value, index) => value - this.#mean[index]));
      let [best, seen] = [-2, -1];
      this.#directions.forEach((other, index) => {
        const cosine = other.reduce((total, value, position) => total + value * direction[position], 0);
        if (cosine > best) [best, seen] = [cosine, index];
      });
      if (best >= COPY_COSINE) found.push([table.classNames[slot], this.#bundle.classNames[seen]]);
    }
    return found;
  }

  #refuse({ numChanged, numReference, share, limit, takers, copies }) {
    const percent = (fraction) => `${(100 * fraction).toFixed(1)} %`;
    const hint = 'Inject again with a smaller loss of seen accuracy, or leave these classes out; where it is meant, give `allowChangedAnswers: true`, and the history says so.';
    if (share > limit) {
      const named = takers.slice(0, 5).map(([name, count]) => `${shown(name)} (${count})`).join(', ');
      const others = takers.length > 5 ? ` and ${takers.length - 5} others` : '';
      throw new GuardError(`The change takes ${numChanged} of ${numReference} answers on known classes (${percent(share)}) from the classes that give them now; this bundle lets one change take ${percent(limit)}. They would go to ${named}${others}. Nothing was changed.`, {
        found: share,
        expected: `at most ${limit}`,
        hint,
      });
    }
    const [[name, seen]] = copies;
    throw new GuardError(`The row of ${shown(name)} is a copy of that of ${shown(seen)}, which the head knows: it would take that class's answers. Nothing was changed.`, {
      found: seen,
      expected: `a cosine below ${COPY_COSINE}`,
      where: name,
      hint,
    });
  }
}

// Random signs, (featureDim, width); weights that are no wider than a sketch stay as they are.
function sketching(featureDim) {
  const width = Math.min(featureDim, SKETCH_DIM);
  const signs = new Float64Array(featureDim * width);
  if (featureDim <= SKETCH_DIM) {
    for (let index = 0; index < featureDim; index += 1) signs[index * width + index] = 1;
    return signs;
  }
  randomBytes(featureDim).forEach((byte, index) => {
    for (let bit = 0; bit < 8; bit += 1) signs[8 * index + bit] = (byte >> (7 - bit)) & 1 ? 1 : -1;
  });
  return signs;
}

function unit(vector) {
  const greatest = Math.max(TINY, ...Array.from(vector, Math.abs));
  const scaled = Float64Array.from(vector, (value) => value / greatest);
  const length = Math.max(TINY, Math.sqrt(scaled.reduce((total, value) => total + value * value, 0)));
  return scaled.map((value) => value / length);
}
