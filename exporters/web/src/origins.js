// Who signed the classes of a state, kept with it as icis_deploy/runtime/state/origins.py says: `{signed_by, columns}`,
// with the columns of the model's scores as ranges, first ones and those after the last ones. A class without an origin
// was exported with the bundle, or came in before origins were kept.

import { asInteger, asList, asObject, asText } from './json.js';

const MAX_COLUMN = 1 << 22;

function signerByColumn(origins) {
  const signers = new Map();
  for (const { signed_by: signedBy, columns } of origins) {
    for (const [first, end] of columns) for (let column = first; column < end; column += 1) signers.set(column, signedBy);
  }
  return signers;
}

/** The origins after a class update that wrote the columns `written`, of all columns with a class in them (`kept`). */
export function originsAfterUpdate(origins, { written, kept, signedBy }) {
  const signers = signerByColumn(origins);
  for (const column of written) signers.set(column, signedBy);
  const staying = new Set(kept);
  const columnsOf = new Map();
  for (const column of [...signers.keys()].filter((each) => staying.has(each)).sort((left, right) => left - right)) {
    const ranges = columnsOf.get(signers.get(column)) ?? [];
    if (ranges.at(-1)?.[1] === column) ranges.at(-1)[1] += 1;
    else ranges.push([column, column + 1]);
    columnsOf.set(signers.get(column), ranges);
  }
  const inOrder = [...columnsOf.keys()].sort((left, right) => ((left ?? '') < (right ?? '') ? -1 : 1));
  return inOrder.map((each) => ({ signed_by: each, columns: columnsOf.get(each) }));
}

/**
 * The keys that signed classes of a state which are not in effect now; `rewritten` are the columns that have another
 * class or another row now than then, as one key may have signed both.
 */
export function broughtBack(now, then, rewritten) {
  const current = signerByColumn(now);
  return new Set([...signerByColumn(then)].filter(([column, each]) => each !== null && (current.get(column) !== each || rewritten.has(column))).map(([, each]) => each));
}

/** The origins that a journal holds. Throws TypeError. */
export function originsFromJson(value) {
  return asList(value, 'origins').map((each) => {
    const { signed_by: signedBy, columns } = asObject(each, 'origin');
    const ranges = asList(columns, 'columns').map((range) => asList(range, 'columns').map((bound) => asInteger(bound, 'columns')));
    const bounds = ranges.flat();
    const isAscending = bounds.every((bound, index) => index === 0 || bounds[index - 1] < bound);
    if (!ranges.length || ranges.some((range) => range.length !== 2) || !isAscending || bounds[0] < 0 || bounds.at(-1) > MAX_COLUMN) {
      throw new TypeError('the columns of an origin are no ranges in ascending order');
    }
    return { signed_by: signedBy === null ? null : asText(signedBy, 'signed_by'), columns: ranges };
  });
}
