// Texts to a model's inputs by @huggingface/tokenizers, as the bundle's tokenizer.json says. That library neither
// pads nor truncates; both are done here, as the tokenizers library does them.

import { BrokenBundleError, UnsupportedError } from './errors.mjs';

const COLUMNS = { input_ids: 'ids', attention_mask: 'attention_mask', token_type_ids: 'token_type_ids' };

async function readJson(source, file, needed) {
  const bytes = await source.read(file);
  if (!bytes && needed) throw new BrokenBundleError(`${file}: missing`);
  return bytes ? JSON.parse(new TextDecoder().decode(bytes)) : {};
}

/** How many special tokens stand before the text's own, which are `bare`. */
function leading(whole, bare) {
  const starts = (at) => bare.every((id, index) => whole[at + index] === id);
  for (let at = 0; at <= whole.length - bare.length; at++) if (starts(at)) return at;
  return 0;
}

/** The text's own tokens are cut at their end, special ones stay. */
function truncated(encoding, bare, limit) {
  const before = leading(encoding.ids, bare);
  const kept = before + limit - (encoding.ids.length - bare.length);
  const pick = (list) => [...list.slice(0, kept), ...list.slice(before + bare.length)];
  return Object.fromEntries(Object.values(COLUMNS).map((name) => [name, pick(encoding[name])]));
}

export class TextTokenizer {
  #tokenizer;
  #padding;

  /** `limit` is how many tokens the model takes, null for no limit. */
  constructor(Tokenizer, definition, config, limit) {
    this.#tokenizer = new Tokenizer(definition, config);
    this.limit = Math.min(limit ?? Infinity, config.model_max_length ?? Infinity);
    this.#padding = padding(definition, config, this.#tokenizer);
  }

  /** Rows of one length: int64 [texts, longest] each of `names`, special tokens added. */
  encode(texts, { names = Object.keys(COLUMNS) } = {}) {
    const rows = texts.map((text) => this.#one(text));
    const width = Math.max(...rows.map((row) => row.ids.length));
    return Object.fromEntries(names.map((name) => [name, this.#column(rows, name, width)]));
  }

  /** The ids of one text. */
  ids(text) {
    return this.#one(text).ids;
  }

  /** Special tokens are left out. */
  decode(ids) {
    // The library refuses to decode nothing.
    return ids.length === 0 ? '' : this.#tokenizer.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false });
  }

  #one(text) {
    const whole = this.#tokenizer.encode(text, { return_token_type_ids: true });
    if (whole.ids.length <= this.limit) return whole;
    const { ids } = this.#tokenizer.encode(text, { add_special_tokens: false });
    return truncated(whole, ids, this.limit);
  }

  #column(rows, name, width) {
    const filler = { input_ids: this.#padding.id, token_type_ids: this.#padding.type }[name] ?? 0;
    const data = new BigInt64Array(rows.length * width).fill(BigInt(filler));
    rows.forEach((row, index) => {
      const values = row[COLUMNS[name]];
      const start = index * width + (this.#padding.left ? width - values.length : 0);
      values.forEach((value, at) => { data[start + at] = BigInt(value); });
    });
    return { type: 'int64', dims: [rows.length, width], data };
  }
}

function padding(definition, config, tokenizer) {
  const token = config.pad_token?.content ?? config.pad_token ?? config.eos_token?.content ?? config.eos_token;
  const id = definition.padding?.pad_id ?? (token ? tokenizer.token_to_id(token) : undefined) ?? 0;
  const side = definition.padding?.direction ?? config.padding_side ?? 'right';
  return { id, type: definition.padding?.pad_type_id ?? 0, left: side.toLowerCase() === 'left' };
}

/** The tokenizer of an open bundle. Throws UnsupportedError where there is no library or no tokenizer.json. */
export async function tokenizerOf({ source, manifest, runtime }) {
  if (!runtime.Tokenizer) throw new UnsupportedError('@huggingface/tokenizers is not installed');
  if (!manifest.files['assets/tokenizer.json']) throw new UnsupportedError('the bundle has no assets/tokenizer.json');
  const definition = await readJson(source, 'assets/tokenizer.json', true);
  const config = manifest.files['assets/tokenizer_config.json'] ? await readJson(source, 'assets/tokenizer_config.json') : {};
  return new TextTokenizer(runtime.Tokenizer, definition, config, manifest.dims.sequence?.max ?? null);
}
