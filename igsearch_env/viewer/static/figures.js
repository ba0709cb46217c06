/** The range of the gains of some rollouts, in nats: zero lies in it, and a whole nat. */
function gainRange(rollouts) {
  const gains = rollouts.flatMap((rollout) => rollout.gains);
  const [low, high] = [Math.min(0, ...gains), Math.max(0, ...gains)];
  return [low, Math.max(high, low + 1)];
}

/** A bar from zero: to the right for a gain, to the left (and striped) for a loss. */
function gainBar(value, [low, high]) {
  const at = (gain) => `${(100 * (gain - low)) / (high - low)}%`;
  const [left, right] = [Math.min(0, value), Math.max(0, value)];
  return el("span", {
    class: `bar ${tone(value)}`, "aria-hidden": "true", vars: { "--zero": at(0) },
  }, value ? el("i", { vars: { left: at(left), right: `calc(100% - ${at(right)})` } }) : null);
}

/** One small bar for each search of a rollout: up for a gain, down for a loss. */
function smallBars(rollout) {
  const shown = rollout.searches.slice(0, 10);
  const parts = shown.map((step, i) => {
    const x = 1 + 10 * i;
    if (!step.gain) return svg("circle", { class: "none", cx: x + 3.5, cy: 20, r: 1.5 });
    const height = Math.max(1.5, 19 * clamp(Math.abs(step.gain) / FULL_BAR, 0, 1));
    return svg("rect", {
      class: tone(step.gain),
      x, y: step.gain > 0 ? 20 - height : 20, width: 7, height, rx: 1,
    });
  });
  return svg("svg", { class: "small-bars", viewBox: "0 0 100 40", "aria-hidden": "true" },
    svg("line", { x1: 0, x2: Math.max(1, shown.length) * 10, y1: 20, y2: 20 }), ...parts);
}

/** Where the gain of a search comes from: the gold answer's log-probability with its documents
 *  (filled), with those of other questions (rings), and the way from their mean to it. */
function strip(step, low) {
  const at = (value) => `${100 * clamp(1 - value / low, 0, 1)}%`;
  const base = mean(step.baselines);
  const [left, right] = [Math.min(base, step.log_prob), Math.max(base, step.log_prob)];
  const way = el("i", {
    class: `way ${tone(step.gain)}`,
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

/** All gains: above the line those of right rollouts, below it the others. The height is the root
 *  of their number, so that few can be seen beside many. Dragging picks a range.
 *  @param onPick called with the lowest and the highest gain picked. */
function histogram(rollouts, range, onPick) {
  const [least, high] = [Math.min(-0.5, GAINS[0]), Math.max(0.5, GAINS[GAINS.length - 1])];
  const below = Math.ceil((BINS * -least) / (high - least)); // so that zero parts two bins
  const width = Math.max(-least / below, high / (BINS - below));
  const low = -below * width;
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
      class: `${tone(i + 0.5 - below)} ${side}`,
      x: i + 0.1, width: 0.8, y: side === "right" ? 49 - height : 51, height,
    });
  }));
  const end = low + BINS * width;
  const at = (value) => `${(100 * (value - low)) / (end - low)}%`;
  const [from, to] = [range.low ?? low, range.high ?? end];
  const picked = range.low === null && range.high === null ? null : el("i", {
    class: "picked",
    vars: { left: at(clamp(from, low, end)), right: `calc(100% - ${at(clamp(to, low, end))})` },
  });
  const field = el("div", { class: "field", "aria-hidden": "true" },
    svg("svg", { viewBox: `0 0 ${BINS} 100`, preserveAspectRatio: "none" }, ...bars),
    el("i", { class: "zero", vars: { left: at(0) } }), picked);
  drag(field, (share) => low + share * (end - low), width, onPick);
  const step = niceStep((end - low) / 8);
  const marks = [];
  for (let mark = Math.ceil(low / step) * step; mark <= end; mark += step) marks.push(mark);
  return el("figure", { class: "histogram" },
    el("figcaption", {}, el("strong", {}, "What every search was worth"),
      el("span", {}, " information gain, nats per answer token · above the line: in right rollouts, ",
        "below: in wrong ones")),
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
