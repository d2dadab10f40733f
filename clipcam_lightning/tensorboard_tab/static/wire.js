/** What the server answers: JSON, or arrays in a safetensors file. */

const TYPES = { F64: Float64Array, F32: Float32Array, I32: Int32Array, F16: Uint16Array, U8: Uint8Array };

/** An answer that says in words what is wrong. */
export class Refused extends Error {
  constructor(text, status) {
    super(text);
    this.status = status;
  }
}

export async function askJson(route) {
  return (await ask(route)).json();
}

/** @returns {Promise<{about: Object, arrays: Object<string, {shape: number[], data: TypedArray}>}>} */
export async function askArrays(route, query = []) {
  const buffer = await (await ask(route, query)).arrayBuffer();
  const start = 8 + Number(new DataView(buffer).getBigUint64(0, true));
  const { __metadata__, ...places } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8)));
  const arrays = {};
  for (const [
    name,
    {
      dtype,
      shape,
      data_offsets: [from, to],
    },
  ] of Object.entries(places)) {
    arrays[name] = { shape, data: new TYPES[dtype](buffer.slice(start + from, start + to)) };
  }
  return { about: JSON.parse(__metadata__.about), arrays };
}

async function ask(route, query = []) {
  const answer = await fetch(`./${route}?${new URLSearchParams(query)}`).catch(() => {
    throw new Refused("TensorBoard does not answer. Is it still running?");
  });
  if (!answer.ok) {
    const isOurs = answer.headers.get("content-type")?.startsWith("text/plain");
    throw new Refused((isOurs && (await answer.text())) || `TensorBoard answered ${answer.status}.`, answer.status);
  }
  return answer;
}

/** Every half float as a number. */
export const HALF = Float32Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : (2 ** -14 * fraction) / 1024);
});
