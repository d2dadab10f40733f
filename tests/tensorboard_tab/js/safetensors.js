/** Responses of the server, as safetensors files. */

/** @type {Record<string, string>} */
const DTYPES = { Float64Array: "F64", Float32Array: "F32", Int32Array: "I32", Uint16Array: "F16", Uint8Array: "U8" };

/** Put a header before the data.
 *
 * @param {Record<string, unknown>} header
 * @param {Uint8Array} data
 * @returns {ArrayBuffer}
 */
export function safetensors(header, data) {
  const text = new TextEncoder().encode(JSON.stringify(header));
  const buffer = new ArrayBuffer(8 + text.length + data.length);
  new DataView(buffer).setBigUint64(0, BigInt(text.length), true);
  new Uint8Array(buffer).set(text, 8);
  new Uint8Array(buffer).set(data, 8 + text.length);
  return buffer;
}

/** Encode arrays with the JSON about them.
 *
 * @param {{about: unknown, arrays: Record<string, {shape: number[], data: ArrayBufferView}>}} content
 */
export function encode({ about, arrays }) {
  /** @type {Record<string, unknown>} */
  const header = { __metadata__: { about: JSON.stringify(about) } };
  const parts = [];
  let end = 0;
  for (const [name, { shape, data }] of Object.entries(arrays)) {
    const dtype = DTYPES[data.constructor.name];
    header[name] = { dtype, shape, data_offsets: [end, (end += data.byteLength)] };
    parts.push(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  return safetensors(header, Buffer.concat(parts));
}
