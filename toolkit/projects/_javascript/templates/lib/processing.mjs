// The self-test's last step: what stands before and after the model, on samples of what it replaces.

import { BrokenBundleError, DriftError } from './errors.mjs';
import { scientific } from './comparison.mjs';
import { readSamples } from './manifest.mjs';
import { isFloat, readable } from './tensors.mjs';
import { tokenizerOf } from './tokenizer.mjs';

function near(reference, answer, bound) {
  const left = readable(reference), right = readable(answer);
  for (let i = 0; i < left.length; i++) if (!(Math.abs(left[i] - right[i]) <= bound)) return false;
  return true;
}

function same(reference, answer, bound) {
  if (!reference || !answer || answer.type !== reference.type || String(answer.dims) !== String(reference.dims)) return false;
  if (isFloat(reference.type)) return near(reference, answer, bound);
  for (let i = 0; i < reference.data.length; i++) if (reference.data[i] !== answer.data[i]) return false;
  return true;
}

/** `{ differ, first }`: how many samples `run` answers otherwise, and the first as `'input_ids' of sample 2`. */
async function differences(samples, run, entry) {
  let differ = 0, first = '';
  for (const { number, inputs, outputs } of samples) {
    const answers = await run(inputs);
    const name = entry.outputs.map((spec) => spec.name).find((each) => !same(outputs[each], answers[each], entry.bound));
    if (name !== undefined && differ++ === 0) first = `'${name}' of sample ${number}`;
  }
  return { differ, first };
}

function held(entry) {
  return entry.outputs.some((spec) => isFloat(spec.dtype)) ? `within ${scientific(entry.bound)}` : 'equal';
}

async function checkGraph(bundle, place, samples, print) {
  const entry = bundle.manifest[place];
  const why = bundle.lacking(place);
  if (why) return print(`${place} skipped: ${why}`);
  const { differ, first } = await differences(samples, (feeds) => bundle.runBeside(place, feeds), entry);
  if (differ === 0) return print(`${place} ${samples.length} samples ${held(entry)}`);
  if (entry.exact) throw new DriftError(`${place}: ${first} differs from the processor's`);
  return print(`${place} ${differ} of ${samples.length} samples differ, which fails nothing: ${entry.reason}`);
}

/** Texts to tokens, or tokens to text, by the tokenizer in JavaScript; null where the samples are of neither kind. */
function byTokenizer(tokenizer, entry) {
  const [first] = entry.inputs;
  if (first?.dtype === 'string') {
    const names = entry.outputs.map((spec) => spec.name);
    return (feeds) => tokenizer.encode(feeds[first.name].data, { names });
  }
  if (entry.outputs[0]?.dtype !== 'string') return null;
  const output = entry.outputs[0].name;
  return (feeds) => {
    const text = tokenizer.decode(Array.from(feeds[first.name].data, Number));
    return { [output]: { type: 'string', dims: [1], data: [text] } };
  };
}

async function checkTokenizer(bundle, place, samples, print) {
  const entry = bundle.manifest[place];
  if (!entry.needs?.length || !bundle.manifest.files['assets/tokenizer.json']) return;
  if (!bundle.runtime.Tokenizer) return print(`${place} in JavaScript skipped: @huggingface/tokenizers is not installed`);
  const run = byTokenizer(await tokenizerOf(bundle), entry);
  if (!run) return;
  const { differ, first } = await differences(samples, run, entry);
  if (differ) throw new DriftError(`${place} in JavaScript: ${first} differs from the tokenizer's`);
  print(`${place} in JavaScript ${samples.length} samples equal`);
}

/** Says nothing of a graph that the bundle does not have. Throws DriftError where an exact one answers otherwise. */
export async function checkProcessing(bundle, place, print) {
  const entry = bundle.manifest[place];
  if (!entry?.graph) return;
  const samples = await readSamples(bundle.source, bundle.manifest, `${place}_data_set_`);
  if (!samples.length) throw new BrokenBundleError(`${place}: the bundle holds no samples to check it on`);
  await checkGraph(bundle, place, samples, print);
  await checkTokenizer(bundle, place, samples, print);
}
