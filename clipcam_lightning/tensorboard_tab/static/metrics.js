/** The metrics of a probe that the page shows, and what they mean. */

/**
 * @typedef {Object} Metric
 * @property {string} name in the data
 * @property {string} label
 * @property {number} digits after the point
 * @property {string} meaning with range and direction
 */

/** @type {Metric[]} */
export const METRICS = [
  {
    name: "drift",
    label: "Drift from the callback's baseline",
    digits: 2,
    meaning: "1 minus the correlation with the baseline's map: 0 the same map, 1 an unrelated one, 2 an inverted one.",
  },
  {
    name: "noise_ratio",
    label: "Drift in units of the noise floor",
    digits: 1,
    meaning:
      "Drift divided by how far the map moves if the prompt is paraphrased or the image hardly changes: " +
      "up to about 2 is noise, higher is more.",
  },
  {
    name: "shared_gain",
    label: "Shared gain",
    digits: 2,
    meaning:
      "Share of the map that is new where the maps of the other images gained most, −1 to 1: " +
      "the higher, the more the model looks there in all images.",
  },
  {
    name: "concentration",
    label: "Concentration",
    digits: 2,
    meaning: "Share of the map that is new in one spot, 0 to 1: the higher, the more the map moved into that spot.",
  },
  {
    name: "top_iou",
    label: "Top-20 % IoU",
    digits: 2,
    meaning: "Overlap of the hottest 20 % of the cells with the baseline's: 1 the same cells, 0 none in common.",
  },
  {
    name: "center_shift",
    label: "Centre shift",
    digits: 2,
    meaning: "How far the centre of the map moved, 0 to 1 diagonals of the image: higher is further.",
  },
  {
    name: "similarity",
    label: "Similarity",
    digits: 3,
    meaning: "Cosine of image and prompt, −1 to 1: higher is a better match.",
  },
  {
    name: "energy_inside_mask",
    label: "Energy on the object",
    digits: 2,
    meaning: "Share of the map that lies on the object, 0 to 1: higher is better.",
  },
  {
    name: "background_score",
    label: "Background score",
    digits: 1,
    meaning:
      "How much nearer to its prompt the image without its object is than the other images without theirs, " +
      "in standard deviations: about 0 if only the object predicts the prompt, higher is worse.",
  },
  {
    name: "covered_loss",
    label: "Loss by covering",
    digits: 3,
    meaning:
      "What the similarity loses if the place outside the object is covered where the map has gained most, −2 to 2: " +
      "the higher than the next value, the more the model relies on that place.",
  },
  {
    name: "control_loss",
    label: "Loss by covering another place",
    digits: 3,
    meaning:
      "What it loses if another place is covered, as far from the middle of the image, −2 to 2: about 0 if nothing " +
      "is there, higher where the model looks, too.",
  },
];

export const [DRIFT] = METRICS;
