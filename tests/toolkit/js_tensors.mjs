// What lib/tensor_proto.mjs reads from the folder's files.
import { readFileSync, readdirSync } from 'node:fs';
import { readable } from './lib/tensors.mjs';
import { readTensor } from './lib/tensor_proto.mjs';
const folder = process.argv[2];
const shown = readdirSync(folder).map((file) => {
  const { name, type, dims, data } = readTensor(readFileSync(`${folder}/${file}`), file);
  return [name, [type, dims, Array.from(readable({ type, data }), String)]];
});
console.log(JSON.stringify(Object.fromEntries(shown)));
