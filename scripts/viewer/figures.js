/** A bar from the middle: to the right for a gain, to the left (and striped) for a loss. */
function gainBar(value, full) {
  const share = value === null ? 0 : clamp(Math.abs(value) / full, 0, 1);
  return el("span", {
    class: `bar ${value > 0 ? "up" : "down"}`,
    "aria-hidden": "true",
    vars: { "--share": share },
  }, el("i"));
}

/** One small bar for each search of a rollout: up for a gain, down for a loss. */
function smallBars(rollout) {
  const shown = rollout.searches.slice(0, 10);
  const parts = shown.map((step, i) => {
    const x = 1 + 10 * i;
    if (step.gain === null) return svg("circle", { class: "none", cx: x + 3.5, cy: 16, r: 1.5 });
    const height = Math.max(1.5, 15 * clamp(Math.abs(step.gain) / FULL_BAR, 0, 1));
    return svg("rect", {
      class: step.gain > 0 ? "up" : "down",
      x, y: step.gain > 0 ? 16 - height : 16, width: 7, height, rx: 1,
    });
  });
  return svg("svg", { class: "small-bars", viewBox: "0 0 100 32", "aria-hidden": "true" },
    svg("line", { x1: 0, x2: Math.max(1, shown.length) * 10, y1: 16, y2: 16 }), ...parts);
}

/** Where the gain of a search comes from: the gold answer's log-probability with its documents
 *  (filled), with those of other questions (rings), and the way from their mean to it. */
function strip(step, low) {
  const at = (value) => `${100 * clamp(1 - value / low, 0, 1)}%`;
  const base = mean(step.baselines);
  const [left, right] = [Math.min(base, step.log_prob), Math.max(base, step.log_prob)];
  const way = el("i", {
    class: `way ${step.gain > 0 ? "up" : "down"}`,
    vars: { left: at(left), right: `calc(100% - ${at(right)})` },
  });
  const rings = step.baselines.map((value) => el("i", { class: "ring", vars: { left: at(value) } }));
  return el("div", { class: "strip", "aria-hidden": "true" },
    el("div", { class: "strip-line" },
      way, el("i", { class: "tick", vars: { left: at(base) } }), ...rings,
      el("i", { class: "dot", vars: { left: at(step.log_prob) } })),
    el("div", { class: "axis" },
      ...axisMarks(low).map((value) =>
        el("span", { vars: { left: at(value) } }, value === 0 ? "0" : plain(value).replace(/\.0+$/, "")))));
}

function axisMarks(low) {
  const step = niceStep(-low / 5);
  const marks = [];
  for (let value = 0; value >= low; value -= step) marks.push(Number(value.toFixed(6)));
  return marks;
}

/** 1, 2 or 5 times a power of ten, at least as much as asked for. */
function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((times) => times * power).find((value) => value >= least * 0.999);
}

const BINS = 60;

/** All gains: above the line those of right rollouts, below it the others. Dragging picks a range.
 *  @param onPick called with the lowest and the highest gain picked. */
function histogram(rollouts, range, onPick) {
  const low = Math.min(-0.5, GAINS[0]);
  const high = Math.max(0.5, GAINS[GAINS.length - 1]);
  const width = (high - low) / BINS;
  const bins = { right: new Array(BINS).fill(0), wrong: new Array(BINS).fill(0) };
  for (const rollout of rollouts) {
    const side = bins[rollout.verdict === "right" ? "right" : "wrong"];
    for (const gain of rollout.gains) side[clamp(Math.floor((gain - low) / width), 0, BINS - 1)] += 1;
  }
  const most = Math.max(1, ...bins.right, ...bins.wrong);
  const bars = ["right", "wrong"].flatMap((side) => bins[side].map((number, i) => {
    if (!number) return null;
    const height = Math.max(1, 46 * Math.sqrt(number / most));
    return svg("rect", {
      class: `${low + (i + 0.5) * width > 0 ? "up" : "down"} ${side}`,
      x: i + 0.1, width: 0.8, y: side === "right" ? 49 - height : 51, height,
    });
  }));
  const at = (value) => `${(100 * (value - low)) / (high - low)}%`;
  const [from, to] = [range.low ?? low, range.high ?? high];
  const picked = range.low === null && range.high === null ? null : el("i", {
    class: "picked",
    vars: { left: at(clamp(from, low, high)), right: `calc(100% - ${at(clamp(to, low, high))})` },
  });
  const field = el("div", { class: "field", "aria-hidden": "true" },
    svg("svg", { viewBox: `0 0 ${BINS} 100`, preserveAspectRatio: "none" }, ...bars),
    el("i", { class: "zero", vars: { left: at(0) } }), picked);
  drag(field, (share) => low + share * (high - low), width, onPick);
  const step = niceStep((high - low) / 8);
  const marks = [];
  for (let mark = Math.ceil(low / step) * step; mark <= high; mark += step) marks.push(mark);
  return el("figure", { class: "histogram" },
    el("figcaption", {}, el("strong", {}, "What every search was worth"),
      el("span", {}, " information gain, nats per answer token; above the line in right rollouts, ",
        "below it in the others (height: square root of the number)")),
    field,
    el("div", { class: "axis", "aria-hidden": "true" }, ...marks.map((mark) =>
      el("span", { vars: { left: at(mark) } }, Number(mark.toFixed(6)) === 0 ? "0" : signed(mark, step < 1 ? 1 : 0)))));
}

function drag(field, valueAt, width, onPick) {
  let start = null;
  const value = (event) => {
    const box = field.getBoundingClientRect();
    return valueAt(clamp((event.clientX - box.left) / box.width, 0, 1));
  };
  field.addEventListener("pointerdown", (event) => {
    start = value(event);
    field.setPointerCapture(event.pointerId);
  });
  field.addEventListener("pointercancel", () => { start = null; });
  field.addEventListener("pointerup", (event) => {
    if (start === null) return;
    const [low, high] = [start, value(event)].sort((a, b) => a - b);
    const click = high - low < width;
    onPick(click ? low - width : low, click ? high + width : high);
  });
}
