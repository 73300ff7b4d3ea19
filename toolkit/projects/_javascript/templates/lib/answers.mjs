// What an app wants of a model: texts to vectors, a picture to classes.

import { InputError } from './errors.mjs';
import { inChannels } from './pixels.mjs';
import { readable } from './tensors.mjs';

function softmax(logits) {
  const largest = logits.reduce((one, other) => Math.max(one, other), -Infinity);
  const powers = Array.from(logits, (value) => Math.exp(value - largest));
  const sum = powers.reduce((total, value) => total + value, 0);
  return powers.map((value) => value / sum);
}

/** Vectors of the texts, an array of numbers each: the first output [texts, width]. */
export async function embed(bundle, tokenizer, texts) {
  const names = bundle.manifest.inputs.map((spec) => spec.name);
  const output = bundle.manifest.outputs.find((spec) => spec.shape.length === 2);
  if (!output) throw new InputError(`${bundle.manifest.model.name} has no output [batch, width]`);
  const { [output.name]: vectors } = await bundle.run(tokenizer.encode(texts, { names }));
  const width = vectors.dims[1];
  const data = readable(vectors);
  return texts.map((_, row) => Array.from(data.slice(row * width, (row + 1) * width)));
}

/** Cosine of the angle between two vectors; 0 where one has no length. */
export function cosine(one, other) {
  const dot = (left, right) => left.reduce((sum, value, index) => sum + value * right[index], 0);
  const lengths = Math.sqrt(dot(one, one) * dot(other, other));
  return lengths ? dot(one, other) / lengths : 0;
}

/**
 * The classes of a picture `{ dims: [height, width, channels], data }`, likeliest first: `{ label, share }`.
 * The picture goes through the bundle's own preprocess graph, its answer through postprocess where there is one.
 */
export async function classify(bundle, picture) {
  const [input] = bundle.manifest.preprocess?.inputs ?? [];
  const pixels = inChannels(picture, input?.shape[2] ?? picture.dims[2]);
  const fed = await bundle.runBeside('preprocess', { [input?.name]: pixels });
  const outputs = await bundle.run(fed);
  const shares = await sharesOf(bundle, outputs);
  const { labels } = bundle.manifest.model;
  const classes = Array.from(shares, (share, index) => ({ label: labels[index] ?? String(index), share }));
  return classes.sort((one, other) => other.share - one.share);
}

async function sharesOf(bundle, outputs) {
  const [{ name }] = bundle.manifest.outputs;
  const logits = outputs[name];
  if (bundle.lacking('postprocess')) return softmax(readable(logits));
  const answers = await bundle.runBeside('postprocess', outputs);
  const shares = Object.values(answers).find((each) => each.type === logits.type && String(each.dims) === String(logits.dims));
  return shares ? Array.from(readable(shares)) : softmax(readable(logits));
}
