// Slots: the reserved rows of an updatable head, and what a class update does to them (icis_deploy/head/slots.py).
// A table is never changed; an update gives a new one.

import { concat, readSafetensors, sha256Hex, utf8, writeSafetensors } from './bytes.js';
import { checkNames, NUM_STATISTICS } from './class-update.js';
import { CapacityError, ClassConflictError, CorruptFileError, IncompatibleError, quoted } from './errors.js';
import { asList, asObject, asTexts, dumps, parseStrict } from './json.js';

export const EMPTY_SLOT_BIAS = -6e4;

export class SlotTable {
  /**
   * @param {Float32Array} weight (capacity, featureDim)
   * @param {Float32Array} bias (capacity)
   * @param {Float32Array} arbiter (capacity, 5); zeros where a slot has none
   * @param {(string | null)[]} classNames (capacity), null where a slot is empty
   */
  constructor(weight, bias, arbiter, classNames) {
    this.weight = weight;
    this.bias = bias;
    this.arbiter = arbiter;
    this.classNames = classNames;
    this.capacity = classNames.length;
    this.featureDim = weight.length / classNames.length;
    this.filled = [...classNames.keys()].filter((slot) => classNames[slot] !== null);
    this.filledNames = this.filled.map((slot) => classNames[slot]);
    this.hasArbiter = arbiter.some((value) => value !== 0);
  }

  static empty(capacity, featureDim) {
    return new SlotTable(
      new Float32Array(capacity * featureDim),
      new Float32Array(capacity).fill(EMPTY_SLOT_BIAS),
      new Float32Array(capacity * NUM_STATISTICS),
      new Array(capacity).fill(null),
    );
  }

  /** The slots that hold another class, or another row, than in a table of the same size. */
  differing(other) {
    const isSame = (left, right) => left.every((value, index) => value === right[index]);
    return [...this.classNames.keys()].filter((slot) => this.classNames[slot] !== other.classNames[slot]
      || this.bias[slot] !== other.bias[slot] || !isSame(this.row(slot), other.row(slot)) || !isSame(this.coefficients(slot), other.coefficients(slot)));
  }

  row(slot) {
    return this.weight.subarray(slot * this.featureDim, (slot + 1) * this.featureDim);
  }

  coefficients(slot) {
    return this.arbiter.subarray(slot * NUM_STATISTICS, (slot + 1) * NUM_STATISTICS);
  }

  /** The SHA-256 of the classes in slots, whichever slots they are in, as `SlotTable.digest` of the Python device. */
  async digest() {
    const named = this.filled.map((slot) => ({ slot, name: utf8(this.classNames[slot]) }));
    named.sort((left, right) => compareBytes(left.name, right.name));
    const parts = [utf8('icis-deploy slots 1')];
    for (const { slot, name } of named) {
      parts.push(littleEndian([name.length], 'setUint32'), name);
      parts.push(littleEndian([...this.row(slot), this.bias[slot], ...this.coefficients(slot)], 'setFloat32'));
    }
    return sha256Hex(concat(parts));
  }

  without(slots) {
    const next = this.#copy();
    for (const slot of slots) next.empty(slot);
    return next.table();
  }

  /**
   * The table after an update that was made for this head.
   * Throws IncompatibleError, ClassConflictError, CapacityError.
   */
  apply(update, bakedNames) {
    if (update.complete && this.filled.length) return this.without(this.filled).apply(update, bakedNames);
    if (update.featureDim !== this.featureDim) {
      throw new IncompatibleError(`The class update's rows are for feature_dim ${update.featureDim}; this head has ${this.featureDim}.`, {
        found: update.featureDim,
        expected: this.featureDim,
      });
    }
    const slotOf = new Map(this.filled.map((slot) => [this.classNames[slot], slot]));
    checkConflicts(update, slotOf, bakedNames);
    const next = this.#copy();
    for (const name of update.removed) next.empty(slotOf.get(name));
    const free = [...next.names.keys()].filter((slot) => next.names[slot] === null);
    if (update.added.length > free.length) {
      throw new CapacityError(`The class update adds ${update.added.length} classes; ${this.capacity} slots, ${this.capacity - free.length} used.`, {
        found: update.added.length,
        expected: free.length,
        hint: 'Remove classes first, or bake those in the slots with `icis-deploy compact` on the workbench and hand the new bundle over.',
      });
    }
    const targets = [...free.slice(0, update.added.length), ...update.replaced.map((name) => slotOf.get(name))];
    targets.forEach((slot, index) => next.write(slot, update, index));
    return next.table();
  }

  #copy() {
    const [weight, bias, arbiter, names] = [this.weight.slice(), this.bias.slice(), this.arbiter.slice(), [...this.classNames]];
    const dim = this.featureDim;
    return {
      names,
      empty(slot) {
        weight.fill(0, slot * dim, (slot + 1) * dim);
        bias[slot] = EMPTY_SLOT_BIAS;
        arbiter.fill(0, slot * NUM_STATISTICS, (slot + 1) * NUM_STATISTICS);
        names[slot] = null;
      },
      write(slot, update, index) {
        const row = update.rows.subarray(index * (dim + 1), (index + 1) * (dim + 1));
        weight.set(row.subarray(0, dim), slot * dim);
        bias[slot] = row[dim];
        arbiter.fill(0, slot * NUM_STATISTICS, (slot + 1) * NUM_STATISTICS);
        if (update.arbiter !== null) arbiter.set(update.arbiter.subarray(index * NUM_STATISTICS, (index + 1) * NUM_STATISTICS), slot * NUM_STATISTICS);
        names[slot] = update.classNames[index];
      },
      table: () => new SlotTable(weight, bias, arbiter, names),
    };
  }
}

function checkConflicts(update, slotOf, bakedNames) {
  const known = update.added.filter((name) => slotOf.has(name) || bakedNames.has(name));
  if (known.length) {
    throw new ClassConflictError(`The class update adds ${quoted(known)}, which the head already knows.`, {
      found: known,
      hint: 'Replace or remove it instead.',
    });
  }
  const absent = [...update.replaced, ...update.removed].filter((name) => !slotOf.has(name));
  if (absent.length) {
    const baked = absent.filter((name) => bakedNames.has(name));
    const reason = baked.length ? 'is baked into the head and cannot be changed' : 'is in no slot';
    throw new ClassConflictError(`The class update replaces or removes ${quoted(baked.length ? baked : absent)}, which ${reason}.`, {
      found: baked.length ? baked : absent,
    });
  }
}

function compareBytes(left, right) {
  for (let index = 0; index < Math.min(left.length, right.length); index += 1) {
    if (left[index] !== right[index]) return left[index] - right[index];
  }
  return left.length - right.length;
}

function littleEndian(values, set) {
  const data = new Uint8Array(4 * values.length);
  const view = new DataView(data.buffer);
  values.forEach((value, index) => view[set](4 * index, value, true));
  return data;
}

/** The bytes of a slot table, as the Python device writes them: filled rows alone. */
export function serializeSlots(table) {
  const rows = new Float32Array(table.filled.length * (table.featureDim + 1));
  const arbiter = new Float32Array(table.filled.length * NUM_STATISTICS);
  table.filled.forEach((slot, index) => {
    rows.set(table.row(slot), index * (table.featureDim + 1));
    rows[index * (table.featureDim + 1) + table.featureDim] = table.bias[slot];
    arbiter.set(table.coefficients(slot), index * NUM_STATISTICS);
  });
  const fields = { schema_version: table.hasArbiter ? 2 : 1, capacity: table.capacity, slots: table.filled, class_names: table.filledNames };
  const tensors = [['rows', [table.filled.length, table.featureDim + 1], rows]];
  if (table.hasArbiter) tensors.unshift(['arbiter', [table.filled.length, NUM_STATISTICS], arbiter]);
  return writeSafetensors(tensors, ['slot_table', dumps(fields, { spaced: true })]);
}

/** The slot table that these bytes hold. Throws CorruptFileError where they hold none of these sizes. */
export function parseSlots(data, { capacity, featureDim }) {
  try {
    const { tensors, metadata } = readSafetensors(data);
    const fields = asObject(parseStrict(metadata.slot_table ?? ''), 'slot_table');
    const names = { 1: ['rows'], 2: ['arbiter', 'rows'] }[fields.schema_version];
    if (names === undefined) throw new TypeError('its schema is another one');
    const { rows, arbiter } = tensors;
    const slots = asList(fields.slots, 'slots');
    const classNames = asTexts(fields.class_names, 'class_names');
    checkNames(classNames);
    const fits =
      String(Object.keys(tensors).sort()) === String(names) &&
      names.every((name) => tensors[name].dtype === 'F32' && tensors[name].values.every(Number.isFinite)) &&
      fields.capacity === capacity &&
      String(rows.shape) === String([slots.length, featureDim + 1]) &&
      (arbiter === undefined || String(arbiter.shape) === String([slots.length, NUM_STATISTICS])) &&
      classNames.length === slots.length &&
      slots.every((slot, index) => Number.isSafeInteger(slot) && slot >= 0 && slot < capacity && (!index || slot > slots[index - 1]));
    if (!fits) throw new TypeError(`it is none of ${capacity} slots with rows of ${featureDim + 1} values`);
    const table = SlotTable.empty(capacity, featureDim);
    slots.forEach((slot, index) => {
      const row = rows.values.subarray(index * (featureDim + 1), (index + 1) * (featureDim + 1));
      table.weight.set(row.subarray(0, featureDim), slot * featureDim);
      table.bias[slot] = row[featureDim];
      if (arbiter !== undefined) table.arbiter.set(arbiter.values.subarray(index * NUM_STATISTICS, (index + 1) * NUM_STATISTICS), slot * NUM_STATISTICS);
      table.classNames[slot] = classNames[index];
    });
    return new SlotTable(table.weight, table.bias, table.arbiter, table.classNames);
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
    throw new CorruptFileError(`The slot table is damaged: ${error.message}.`, { found: error.message, hint: 'Fetch the bundle again.', cause: error });
  }
}
