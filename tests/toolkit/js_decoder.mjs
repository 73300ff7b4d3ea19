// Six tokens by lib/decoder.mjs behind three that are given.
import { openBundle } from './bundle.mjs';
import { Decoder } from './lib/decoder.mjs';

const bundle = await openBundle(process.argv[2]);
const decoder = new Decoder(bundle, 16);
const made = [];
for await (const token of decoder.generate([5, 250, 17], 6)) made.push(token);
await bundle.close();
console.log(JSON.stringify(made));
