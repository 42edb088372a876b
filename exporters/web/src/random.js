// Words of PCG64 with numpy's seed 0, which sketches of a reference and the input of a self-test are made of
// (numpy.random.PCG64(0).random_raw; O'Neill, "PCG", 2014: XSL-RR 128/64).

const MASK = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;
const STATE = 35399562948360463058890781895381311971n;
const INCREMENT = 87136372517582989555478159403783844777n;

/** The first words, each as eight bytes, least significant first. */
export function randomBytes(numWords) {
  const data = new Uint8Array(8 * numWords);
  const view = new DataView(data.buffer);
  let state = STATE;
  for (let index = 0; index < numWords; index += 1) {
    state = (state * MULTIPLIER + INCREMENT) & MASK;
    const word = BigInt.asUintN(64, (state >> 64n) ^ state);
    const turn = state >> 122n;
    view.setBigUint64(8 * index, BigInt.asUintN(64, (word >> turn) | (word << (64n - turn))), true);
  }
  return data;
}
