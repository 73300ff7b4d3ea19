// What an app wants of a model: texts to vectors, a picture to classes.

import { InputError } from './errors.mjs';
import { inChannels, withoutAlpha } from './pixels.mjs';
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
 * The classes of a picture `{ dims: [height, width, channels], data }` that stands upright, likeliest first:
 * `{ label, share }`. The picture goes through the bundle's own preprocess graph, its answer through postprocess where
 * that gives `probabilities` and `indices`.
 */
export async function classify(bundle, picture) {
  const fed = await bundle.runBeside('preprocess', pictureFeeds(bundle.manifest.preprocess?.inputs ?? [], picture));
  const outputs = await bundle.run(fed);
  const { labels } = bundle.manifest.model;
  const classes = await sharesOf(bundle, outputs);
  return classes
    .map(({ index, share }) => ({ label: labels[index] ?? String(index), share }))
    .sort((one, other) => other.share - one.share);
}

/** What the graph before a vision model takes: the pixels, and that they are upright, which is 1 in EXIF. */
function pictureFeeds(inputs, picture) {
  const image = inputs.find((spec) => spec.dtype === 'uint8');
  if (!image) return {};  // then running the graph says what it lacks
  const feeds = { [image.name]: typeof image.shape[2] === 'number' ? inChannels(picture, image.shape[2]) : withoutAlpha(picture) };
  if (inputs.some((spec) => spec.name === 'orientation')) feeds.orientation = scalar(1);
  return feeds;
}

function scalar(value) {
  return { type: 'int64', dims: [], data: BigInt64Array.of(BigInt(value)) };
}

/** `{ index, share }` of each class of the one picture. */
async function sharesOf(bundle, outputs) {
  const [{ name }] = bundle.manifest.outputs;
  const logits = outputs[name];
  const given = bundle.manifest.postprocess?.outputs?.map((spec) => spec.name) ?? [];
  if (bundle.lacking('postprocess') || !given.includes('probabilities') || !given.includes('indices')) {
    return softmax(readable(logits)).map((share, index) => ({ index, share }));
  }
  const { probabilities, indices } = await bundle.runBeside('postprocess', { ...outputs, k: scalar(logits.dims.at(-1)) });
  return Array.from(readable(probabilities), (share, place) => ({ index: Number(indices.data[place]), share }));
}
