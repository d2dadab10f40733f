/** Requests to the server and what it responds: JSON, or arrays in a safetensors file. */

/** @typedef {Float64Array | Float32Array | Int32Array | Uint16Array | Uint8Array} TypedArray */

/**
 * @template {TypedArray} T
 * @typedef {{shape: number[], data: T}} NdArray
 */

/**
 * @typedef {Object} Source one callback in one run
 * @property {string} run
 * @property {string} root first word of the callback's tags
 * @property {string} problem why it cannot be shown; empty if it can
 * @property {boolean} alarm whether its last evaluation is an alarm
 * @property {number} wall_time of its last evaluation
 *
 * @typedef {Object} RowArrays
 * @property {NdArray<Float64Array>} step
 * @property {NdArray<Float64Array>} wall_time
 * @property {NdArray<Uint16Array>} maps half floats `[rows, evaluations, h, w]`
 * @property {NdArray<Float32Array>} row_metrics `[rows, evaluations, metrics]`
 * @property {NdArray<Float32Array>} [baselines] `[baselines, rows, h, w]`
 *
 * @typedef {Object} EvaluationArrays
 * @property {NdArray<Float64Array>} epoch
 * @property {NdArray<Float64Array>} baseline_step
 * @property {NdArray<Int32Array>} baseline index of an evaluation, or `-1 - i` for `baselines[i]`
 * @property {NdArray<Uint8Array>} alarm
 * @property {NdArray<Float32Array>} drift `[probes, evaluations]`
 * @property {NdArray<Float32Array>} similarity `[probes, evaluations]`
 * @property {NdArray<Uint8Array>} flagged `[probes, evaluations]`
 *
 * @typedef {{rows: string[]}} RowsAbout names of the probes
 *
 * @typedef {Object} Ground the ground of a probe, on which other objects are put
 * @property {number} probe
 * @property {number[]} called for each object, a probe with the prompt that the image is closest to
 * @property {number[]} called_before the same at the run's first baseline; -1 if it was not tried then
 *
 * @typedef {Object} EvaluationsAbout
 * @property {{names: string[], prompts: string[], digests: string[], visible: number[]}} probes
 * @property {string} rule
 * @property {{method: string, target: string, layers: string[]}} settings of the maps
 * @property {string[]} metrics names of the columns of `row_metrics`
 * @property {string[]} reasons of the alarm at each evaluation; empty without alarm
 * @property {string[][]} notes of each evaluation
 * @property {Record<string, string>[]} states of each evaluation: names of the states of degenerate maps, by probe
 * @property {Record<string, string>[]} baseline_states of the maps that each evaluation is compared with
 * @property {Record<string, string>} state_words what the states say, by name
 * @property {Ground[][]} grounds that the alarm at each evaluation rests on
 * @property {Record<string, number>} left_out number of evaluations by reason
 *
 * @typedef {{about: {heat: string[], change: string}, arrays: Record<string, NdArray<Uint8Array>>}} Colors
 * @typedef {Record<`${"image" | "mask" | "ground"}.${number}`, NdArray<Uint8Array<ArrayBuffer>>>} FileArrays
 * @typedef {{about: RowsAbout, arrays: RowArrays & FileArrays}} Rows
 * @typedef {{about: EvaluationsAbout & RowsAbout, arrays: EvaluationArrays & Rows["arrays"]}} Evaluations
 */

/** @type {Record<string, new (buffer: ArrayBuffer) => TypedArray>} */
const TYPES = { F64: Float64Array, F32: Float32Array, I32: Int32Array, F16: Uint16Array, U8: Uint8Array };

/** A request that failed; the message is shown to the user. */
export class RequestError extends Error {
  /**
   * @param {string} message
   * @param {number} [status] of HTTP, if there was a response
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** @returns {Promise<Source[]>} */
export async function fetchRuns() {
  return (await (await request("runs")).json()).runs;
}

/** @returns {Promise<Colors>} */
export async function fetchColors() {
  return /** @type {Colors} */ (await fetchArrays("colors"));
}

/**
 * @param {Source} source
 * @returns {Promise<Evaluations>}
 */
export async function fetchEvaluations(source) {
  return /** @type {Evaluations} */ (await fetchArrays("evaluations", query(source)));
}

/**
 * @param {Source} source
 * @param {string[]} names of the probes
 * @returns {Promise<Rows>}
 */
export async function fetchRows(source, names) {
  const probes = names.map((name) => ["probe", name]);
  return /** @type {Rows} */ (await fetchArrays("rows", [...query(source), ...probes]));
}

/** Parse a safetensors file whose metadata holds JSON under the key "about".
 *
 * @param {ArrayBuffer} buffer
 * @returns {{about: any, arrays: Record<string, NdArray<any>>}}
 */
export function parseArrays(buffer) {
  const start = 8 + Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8)));
  const { __metadata__: metadata, ...entries } = header;
  /** @type {Record<string, NdArray<any>>} */
  const arrays = {};
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(entries)) {
    arrays[name] = { shape, data: new TYPES[dtype](buffer.slice(start + offsets[0], start + offsets[1])) };
  }
  return { about: JSON.parse(metadata.about), arrays };
}

/** @param {Source} source */
function query({ run, root }) {
  return [
    ["run", run],
    ["root", root],
  ];
}

/**
 * @param {string} route
 * @param {string[][]} [parameters]
 */
async function fetchArrays(route, parameters) {
  return parseArrays(await (await request(route, parameters)).arrayBuffer());
}

/**
 * @param {string} route
 * @param {string[][]} [parameters]
 */
async function request(route, parameters = []) {
  const response = await fetch(`./${route}?${new URLSearchParams(parameters)}`).catch(() => {
    throw new RequestError("TensorBoard does not respond. Is it still running?");
  });
  if (!response.ok) {
    const isMessage = response.headers.get("content-type")?.startsWith("text/plain");
    const message = isMessage ? await response.text() : "";
    throw new RequestError(message || `TensorBoard responded with status ${response.status}.`, response.status);
  }
  return response;
}

/** The value of every half float, by its bits. */
export const HALF_FLOATS = Float32Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : (2 ** -14 * fraction) / 1024);
});
