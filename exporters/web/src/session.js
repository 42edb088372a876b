// The bundle's model in onnxruntime-web, with the slots as required inputs.

import { IncompatibleError, MissingDependencyError, ModelLoadError, RuntimeFailureError, shown } from './errors.js';
import { NUM_STATISTICS } from './class-update.js';

export class Session {
  #ort;
  #session;
  #bundle;
  #batch;
  #running = Promise.resolve();

  /** Throws MissingDependencyError, ModelLoadError. */
  static async load(model, bundle, ort) {
    const { dtype } = bundle.input;
    if (!['float32', 'uint8'].includes(dtype)) {
      throw new IncompatibleError(`The model takes ${shown(dtype)}, which this runtime does not give.`, { found: dtype, expected: ['float32', 'uint8'], hint: 'Export a model that takes one of them.' });
    }
    const library = ort ?? (await importedRuntime());
    let session;
    try {
      session = await library.InferenceSession.create(model, { executionProviders: ['wasm'] });
    } catch (error) {
      throw new ModelLoadError(`onnxruntime-web cannot load the model: ${error?.message ?? error}`, { found: String(error?.message ?? error), cause: error });
    }
    const required = [bundle.input.name, ...(bundle.capacity ? ['slot_weight', 'slot_bias'] : []), ...(bundle.capacity && bundle.arbiter ? ['slot_arbiter'] : [])];
    const differing = required.filter((name) => !session.inputNames.includes(name)).concat(session.inputNames.filter((name) => !required.includes(name)));
    if (differing.length) {
      throw new IncompatibleError(`The model takes ${session.inputNames}; expected ${required}.`, {
        found: session.inputNames,
        expected: required,
        hint: 'Export the bundle again with `--target web`.',
      });
    }
    return new Session(library, session, bundle);
  }

  constructor(ort, session, bundle) {
    this.#ort = ort;
    this.#session = session;
    this.#bundle = bundle;
    const shape = session.inputMetadata?.find((input) => input.name === bundle.input.name)?.shape;
    this.#batch = Number.isSafeInteger(shape?.[0]) ? shape[0] : null;
  }

  /**
   * Scores `(batch, numOutputs)` and, where asked for, features `(batch, featureDim)`, for one batch.
   * @param {Float32Array | Uint8Array} values (batch, ...shape)
   * @param {SlotTable | null} table
   */
  async run(values, batch, table, { withFeatures = false } = {}) {
    const size = this.#batch ?? batch;
    const outputs = [[], []];
    for (let start = 0; start < batch; start += size) {
      const found = await this.#runBatch(values, start, Math.min(size, batch - start), size, table, withFeatures);
      found.forEach((output, index) => outputs[index].push(output));
    }
    const joined = outputs.map((parts) => (parts.length === 1 ? parts[0] : Float32Array.from(parts.flatMap((part) => [...part]))));
    return { scores: joined[0], features: withFeatures ? joined[1] : null };
  }

  async #runBatch(values, start, count, size, table, withFeatures) {
    const { input, capacity, featureDim, arbiter } = this.#bundle;
    const length = input.shape.reduce((product, side) => product * side, 1);
    const filled = new values.constructor(size * length); // the last batch of a fixed size is filled up with zeros
    filled.set(values.subarray(start * length, (start + count) * length));
    const { Tensor } = this.#ort;
    const feeds = { [input.name]: new Tensor(input.dtype, filled, [size, ...input.shape]) };
    if (table !== null) {
      feeds.slot_weight = new Tensor('float32', table.weight, [capacity, featureDim]);
      feeds.slot_bias = new Tensor('float32', table.bias, [capacity]);
      if (arbiter) feeds.slot_arbiter = new Tensor('float32', table.arbiter, [capacity, NUM_STATISTICS]);
    }
    const names = [this.#session.outputNames[0], ...(withFeatures ? ['features'] : [])];
    // One run after the other: the memory of a session in WebAssembly serves one at a time.
    const running = this.#running.then(() => this.#session.run(feeds, names));
    this.#running = running.catch(() => undefined);
    let outputs;
    try {
      outputs = await running;
    } catch (error) {
      throw new RuntimeFailureError(`onnxruntime-web could not run the model on an input of shape [${[size, ...input.shape]}] and type ${input.dtype}: ${error?.message ?? error}`, {
        found: String(error?.message ?? error),
        cause: error,
      });
    }
    return names.map((name) => outputs[name].data.slice(0, (outputs[name].data.length / size) * count));
  }
}

async function importedRuntime() {
  try {
    return await import('onnxruntime-web');
  } catch (error) {
    throw new MissingDependencyError('onnxruntime-web is not there.', {
      expected: 'onnxruntime-web',
      hint: 'Install it (`npm install onnxruntime-web`), name it in an import map, or give it as `runtime`.',
      cause: error,
    });
  }
}
