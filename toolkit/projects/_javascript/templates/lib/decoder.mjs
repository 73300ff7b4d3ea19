// A language model step by step, one row, the likeliest token each time. Its cache stays where the runtime left it: in
// buffers of full length that the attention appends to, or in tensors that the next step is given as they are.

import { UnsupportedError } from './errors.mjs';
import { ARRAYS, elements } from './tensors.mjs';

const PAST = 'past_key_values.', PRESENT = 'present.', LOGITS = 'logits';
const IN_PLACE = 'GroupQueryAttention';

function int64(values) {
  return { type: 'int64', dims: [1, values.length], data: BigInt64Array.from(values, BigInt) };
}

/** The index of the largest of the last position's logits [1, positions, vocabulary]; on a tie the lower one. */
function likeliest({ dims, data }) {
  const width = dims.at(-1);
  const start = data.length - width;
  let best = 0;
  for (let i = 1; i < width; i++) if (data[start + i] > data[start + best]) best = i;
  return best;
}

export class Decoder {
  #bundle;
  #past;
  #names;
  #cache = {};
  #length = 0;

  /** `limit` is the most positions that prompt and answer take together. */
  constructor(bundle, limit) {
    const { model: { decoder }, inputs, steps } = bundle.manifest;
    if (!decoder) throw new UnsupportedError(`${bundle.manifest.model.name} is no language model`);
    this.#bundle = bundle;
    this.limit = Math.min(limit, decoder.context);
    this.stop = new Set(decoder.eos);
    // Only that attention writes into a buffer which is longer than what it holds.
    this.inPlace = bundle.runtime.buffersInPlace && steps.some((step) => step.stage === 'lower' && step.what.endsWith(`-> ${IN_PLACE}`));
    this.#past = inputs.filter((spec) => spec.name.startsWith(PAST));
    this.#names = new Set(inputs.map((spec) => spec.name));
    this.reset();
  }

  /** Forget what was read. */
  reset() {
    const { Tensor } = this.#bundle.runtime.ort;
    const room = this.inPlace ? this.limit : 0;
    this.#length = 0;
    for (const { name, dtype, shape } of this.#past) {
      const dims = [1, shape[1], room, shape[3]];
      this.#cache[name] = new Tensor(dtype, new ARRAYS[dtype](elements(dims)), dims);
    }
  }

  /** Read these tokens behind all that were read before; answers the likeliest next one. */
  async read(ids) {
    const total = this.#length + ids.length;
    if (total > this.limit) throw new UnsupportedError(`${total} tokens are more than the ${this.limit} that fit`);
    const feeds = {
      input_ids: int64(ids),
      attention_mask: int64(new Array(total).fill(1)),
      ...(this.#names.has('position_ids') ? { position_ids: int64(ids.map((_, index) => this.#length + index)) } : {}),
      ...this.#cache,
    };
    const outputs = await this.#bundle.run(feeds, this.#into());
    this.#length = total;
    if (!this.inPlace) {
      for (const { name } of this.#past) this.#cache[name] = outputs[name.replace(PAST, PRESENT)];
    }
    return likeliest(outputs[LOGITS]);
  }

  #into() {
    if (!this.inPlace) return undefined;
    const buffers = this.#past.map(({ name }) => [name.replace(PAST, PRESENT), this.#cache[name]]);
    return { [LOGITS]: null, ...Object.fromEntries(buffers) };
  }

  /** Token after token of the greedy answer to `prompt`, its end excluded; at most `count`. */
  async *generate(prompt, count) {
    let next = await this.read(prompt);
    for (let made = 0; made < count && !this.stop.has(next); made++) {
      yield next;
      if (made + 1 < count && this.#length < this.limit) next = await this.read([next]);
      else return;
    }
  }
}

/** Pieces of text from tokens as they come: a character that is not whole yet waits for its rest. */
export async function* streamed(tokens, tokenizer) {
  const ids = [];
  let shown = '';
  for await (const id of tokens) {
    ids.push(id);
    const text = tokenizer.decode(ids);
    if (text.endsWith('\ufffd') || !text.startsWith(shown)) continue;
    yield text.slice(shown.length);
    shown = text;
  }
  const rest = tokenizer.decode(ids);
  if (rest.startsWith(shown)) yield rest.slice(shown.length);
}
