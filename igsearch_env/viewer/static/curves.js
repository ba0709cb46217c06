/** Names of the numbers of a training log: those of the table of metrics, and the update's. */
const NAMES = {
  ...Object.fromEntries(Object.entries(DATA.table).map(([name, { label }]) => [name, label])),
  entropy: "entropy, nats",
  loss: "loss",
  kl: "KL to the start",
  clipped: "clipped tokens",
  grad_norm: "gradient norm",
  sign_flips: "tokens whose sign credit flips",
  learning_rate: "learning rate",
};

function curvesView() {
  const series = readSeries();
  const [flat, moving, seen] = [[], [], new Set()];
  for (const one of series) {
    const still = one.points.length > 1 && one.points.every(([, value]) => value === one.points[0][1]);
    const values = JSON.stringify(one.points);
    if (still) flat.push(one);
    else if (!seen.has(values)) moving.push(one); // where EM is the outcome, one chart is enough
    seen.add(values);
  }
  const saved = [...new Set(ROLLOUTS.map((rollout) => rollout.step))];
  return el("article", { class: "curves" },
    el("h1", { tabindex: -1 }, "Training curves"),
    el("p", { class: "note" }, "Thin: each step. Thick: a running mean. ",
      saved.length ? "Rollouts were kept of step " : null,
      ...saved.map((step, i) => [i ? ", " : "", el("a", {
        href: "#/", on: { click: () => { filters = { ...EVERYTHING, step: String(step) }; } },
      }, String(step))])),
    el("div", { class: "charts" }, ...moving.map(chart)),
    flat.length ? el("p", { class: "note" }, "Did not change: ",
      flat.map((one) => `${one.name} ${plain(one.points[0][1])}`).join(", ")) : null);
}

/** Every number of the log, those that matter most first. */
function readSeries() {
  const found = new Map();
  const add = (key, step, value) => {
    if (typeof value !== "number") return;
    if (!found.has(key)) found.set(key, []);
    found.get(key).push([step, value]);
  };
  for (const metrics of DATA.metrics) {
    for (const [key, value] of Object.entries(metrics)) {
      if (key === "step") continue;
      if (value === null || typeof value !== "object") add(key, metrics.step, value);
      else for (const [inner, one] of Object.entries(value)) add(`${key} ${inner}`, metrics.step, one);
    }
  }
  const rank = new Map(Object.keys(NAMES).map((key, i) => [key, i]));
  return [...found].map(([key, points]) => ({ key, points, name: NAMES[key] ?? key.replaceAll("_", " ") }))
    .sort((a, b) => (rank.get(a.key) ?? 99) - (rank.get(b.key) ?? 99));
}

function chart({ key, name, points }) {
  const [first, last] = [points[0][0], points[points.length - 1][0]];
  const values = points.map(([, value]) => value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const x = (step) => (last === first ? 50 : (100 * (step - first)) / (last - first));
  const y = (value) => 95 - (90 * (value - low)) / (high - low || 1);
  const line = (some, kind) => svg("polyline", {
    class: kind, "vector-effect": "non-scaling-stroke",
    points: some.map(([step, value]) => `${x(step)},${y(value)}`).join(" "),
  });
  const readout = el("span", { class: "readout" }, plain(values[values.length - 1]));
  const needle = el("i", { class: "needle", hidden: true });
  let chosen = points.length - 1;
  const choose = (i) => {
    chosen = clamp(i, 0, points.length - 1);
    const [step, value] = points[chosen];
    readout.textContent = `step ${step}: ${plain(value)}`;
    needle.hidden = false;
    needle.style.left = `${x(step)}%`;
  };
  const plot = el("div", {
    class: "plot", tabindex: 0, role: "img",
    "aria-label": `${name}: ${plain(values[0])} at step ${first}, ${plain(values[values.length - 1])} at step ${last}`,
    on: {
      pointermove: (event) => {
        const box = event.currentTarget.getBoundingClientRect();
        const step = first + ((event.clientX - box.left) / box.width) * (last - first);
        choose(points.reduce((best, [at], i) =>
          Math.abs(at - step) < Math.abs(points[best][0] - step) ? i : best, 0));
      },
      keydown: (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (by) { choose(chosen + by); event.preventDefault(); }
      },
    },
  },
  svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" },
    line(points, "raw"), line(smooth(points), "smooth")), needle);
  return el("figure", { class: "chart", "data-series": key },
    el("figcaption", {}, el("span", {}, name), readout),
    el("div", { class: "with-scale" },
      el("div", { class: "y" }, el("span", {}, plain(high)), el("span", {}, plain(low))), plot),
    el("div", { class: "x", "aria-hidden": "true" }, el("span", {}, String(first)), el("span", {}, String(last))));
}

/** The mean of each point and of as many before and after it as there are. */
function smooth(points) {
  const reach = Math.floor(points.length / 20);
  return points.map(([step], i) => {
    const around = Math.min(reach, i, points.length - 1 - i);
    return [step, mean(points.slice(i - around, i + around + 1).map(([, value]) => value))];
  });
}
