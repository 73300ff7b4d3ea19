// How far an answer is from the reference: sums in float64, as toolkit/drift/metrics.py has them.

import { readable } from './tensors.mjs';

// A square of this still sums to a finite number, and no sound model output comes near it.
const LARGEST = 1e100;

function broken(data, padded) {
  let count = 0;
  for (let i = 0; i < data.length; i++) {
    const value = Number(data[i]);
    // NaN compares false with everything, so one comparison finds all three; finite padding does not count.
    if (!(Math.abs(value) <= LARGEST) && !(Number.isFinite(value) && padded?.(i))) count++;
  }
  return count;
}

function sums(reference, answer, padded) {
  const total = { signal: 0, power: 0, product: 0, noise: 0, peak: 0 };
  for (let i = 0; i < reference.length; i++) {
    if (padded?.(i)) continue;
    const r = Number(reference[i]), c = Number(answer[i]), error = r - c;
    total.signal += r * r;
    total.power += c * c;
    total.product += r * c;
    total.noise += error * error;
    if (Math.abs(error) > total.peak) total.peak = Math.abs(error);
  }
  return total;
}

function metrics({ signal, power, product, noise, peak }) {
  if (peak === 0) return { sqnr: Infinity, cosine: 1, relativeL2: 0, maxAbs: 0 };
  if (signal === 0) return { sqnr: -Infinity, cosine: 0, relativeL2: Infinity, maxAbs: peak };
  const cosine = power === 0 ? 0 : product / (Math.sqrt(signal) * Math.sqrt(power));
  return {
    sqnr: noise === 0 ? Infinity : 10 * (Math.log10(signal) - Math.log10(noise)),
    cosine: Math.min(1, Math.max(-1, cosine)),
    relativeL2: Math.sqrt(noise) / Math.sqrt(signal),
    maxAbs: peak,
  };
}

/** Why the two cannot be compared, as half a sentence; empty if they can. */
function defect(reference, answer, padded) {
  if (!reference) return 'is missing from the reference';
  if (!answer) return 'is missing';
  const shapes = [answer.dims, reference.dims].map((dims) => `[${dims.join(', ')}]`);
  if (shapes[0] !== shapes[1]) return `has shape ${shapes[0]}, the reference has ${shapes[1]}`;
  for (const [tensor, whose] of [[reference, ' of the reference'], [answer, '']]) {
    const count = broken(readable(tensor), padded);
    if (count) return `has ${count} values${whose} that are NaN, infinite or above 1e100`;
  }
  return '';
}

/** `{ sqnr, cosine, relativeL2, maxAbs, defect }` of one output on one set; `padded` tells what does not count. */
export function compare(reference, answer, padded = null) {
  const why = defect(reference, answer, padded);
  if (why) return { sqnr: -Infinity, cosine: -1, relativeL2: Infinity, maxAbs: Infinity, defect: why };
  return { ...metrics(sums(readable(reference), readable(answer), padded)), defect: '' };
}

/** Each metric at its worst of the two. */
export function worse(one, other) {
  return {
    sqnr: Math.min(one.sqnr, other.sqnr),
    cosine: Math.min(one.cosine, other.cosine),
    relativeL2: Math.max(one.relativeL2, other.relativeL2),
    maxAbs: Math.max(one.maxAbs, other.maxAbs),
    defect: one.defect || other.defect,
  };
}

/** Why the gate does not let this pass, as a sentence; empty if it does. */
export function judge(name, drift, gate) {
  if (drift.defect) return `output '${name}' ${drift.defect}`;
  const bounds = [
    [gate.min_sqnr_db, drift.sqnr >= gate.min_sqnr_db, () => `SQNR ${fixed(drift.sqnr, 1)} dB`, (b) => `at least ${fixed(b, 1)} dB`],
    [gate.min_cosine, drift.cosine >= gate.min_cosine, () => `cosine ${fixed(drift.cosine, 6)}`, (b) => `at least ${b}`],
    [gate.max_relative_l2, drift.relativeL2 <= gate.max_relative_l2, () => `relative L2 ${scientific(drift.relativeL2)}`, (b) => `at most ${scientific(b)}`],
    [gate.max_abs, drift.maxAbs <= gate.max_abs, () => `max abs ${scientific(drift.maxAbs)}`, (b) => `at most ${scientific(b)}`],
  ];
  for (const [bound, kept, said, asked] of bounds) {
    if (bound !== null && bound !== undefined && !kept) return `output '${name}' drifted: ${said()}, the gate asks for ${asked(bound)}`;
  }
  return '';
}

function fixed(number, digits) {
  return Number.isFinite(number) ? number.toFixed(digits) : number > 0 ? 'inf' : '-inf';
}

/** As C's %.1e writes it: two digits of exponent at least. */
export function scientific(number) {
  if (!Number.isFinite(number)) return fixed(number, 1);
  return number.toExponential(1).replace(/e([+-])(\d)$/, 'e$10$2');
}

export function described(drift) {
  if (drift.defect) return drift.defect;
  const { sqnr, cosine, relativeL2, maxAbs } = drift;
  return `SQNR ${fixed(sqnr, 1)} dB, cosine ${fixed(cosine, 6)}, relative L2 ${scientific(relativeL2)}, max abs ${scientific(maxAbs)}`;
}
