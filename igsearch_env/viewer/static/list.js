const PAGE = 50;
const EVERYTHING = {
  text: "", dataset: "", verdict: "", hops: "", step: "", low: null, high: null, order: "played",
  page: 0,
};
let filters = { ...EVERYTHING };

const ORDERS = {
  played: ["as played", (a, b) => a.index - b.index],
  best: ["highest gain first", (a, b) => (b.gain ?? -Infinity) - (a.gain ?? -Infinity)],
  worst: ["lowest gain first", (a, b) => (a.gain ?? Infinity) - (b.gain ?? Infinity)],
  longest: ["most searches first", (a, b) => b.searches.length - a.searches.length],
};

/** The rollouts that pass every filter, in the order asked for. */
function matches({ text, dataset, verdict, hops, step, low, high, order } = filters) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const found = ROLLOUTS.filter((rollout) =>
    (!dataset || rollout.dataset === dataset)
    && (!verdict || rollout.verdict === verdict)
    && (!hops || String(rollout.hops) === hops)
    && (!step || String(rollout.step) === step)
    && ((low === null && high === null)
      || rollout.gains.some((gain) => gain >= (low ?? -Infinity) && gain <= (high ?? Infinity)))
    && words.every((word) => rollout.words.includes(word)));
  return found.sort((a, b) => ORDERS[order][1](a, b) || a.index - b.index);
}

function listView() {
  const results = el("div", { class: "results" });
  const show = () => {
    const found = matches();
    bar.querySelector("[type=reset]").hidden = !filtered();
    results.replaceChildren(
      summary(found),
      GAINS.length ? histogram(matches({ ...filters, low: null, high: null }), filters, (low, high) => {
        filters = { ...filters, low: round(low), high: round(high), page: 0 };
        bar.replaceWith(bar = filterBar(change));
        show();
      }) : "",
      ...rows(found, show));
  };
  const change = (changes, redraw = false) => {
    filters = { ...filters, ...changes, page: 0 };
    if (redraw) bar.replaceWith(bar = filterBar(change));
    show();
  };
  let bar = filterBar(change);
  show();
  return el("div", { class: "list" },
    el("h1", { tabindex: -1 }, DATA.kind === "training" ? "Rollouts of the run" : "Rollouts"),
    partly(), bar, results, settings());
}

/** Whether a filter or an order is set. */
function filtered() {
  return Object.entries(EVERYTHING).some(([name, value]) => name !== "page" && filters[name] !== value);
}

function round(value) {
  return Number(value.toFixed(2));
}

function partly() {
  if (DATA.total === ROLLOUTS.length) return null;
  return el("p", { class: "note" }, `${ROLLOUTS.length.toLocaleString("en")} of `
    + `${DATA.total.toLocaleString("en")} rollouts, in groups at even distances`);
}

function filterBar(change) {
  const gain = (name, label) => el("input", {
    type: "number", step: "any", placeholder: label, "aria-label": `information gain ${label}`,
    value: filters[name],
    on: { input: (e) => change({ [name]: e.target.value === "" ? null : e.target.valueAsNumber }) },
  });
  return el("form", { class: "filters", role: "search", on: { submit: (e) => e.preventDefault() } },
    el("input", {
      type: "search", id: "search", placeholder: "Search questions and answers",
      "aria-label": "search questions and answers", value: filters.text,
      on: { input: (e) => change({ text: e.target.value }) },
    }),
    choice("dataset", "data set", change),
    choice("verdict", "verdict", change, ["right", "wrong", "open"]),
    choice("hops", "hops", change),
    choice("step", "step", change),
    GAINS.length ? el("fieldset", {}, el("legend", {}, "IG of a search"),
      gain("low", "from"), el("span", { "aria-hidden": "true" }, "–"), gain("high", "to")) : null,
    el("label", { class: "order" }, spoken("order"), el("select", {
      id: "order", on: { change: (e) => change({ order: e.target.value }) },
    }, ...Object.entries(ORDERS).map(([name, [label]]) =>
      el("option", { value: name, selected: filters.order === name }, label)))),
    el("button", { type: "reset", on: { click: () => change(EVERYTHING, true) } }, "Clear"));
}

/** A menu of the values that a field of the rollouts has; none where there is just one. */
function choice(name, label, change, order = null) {
  const counts = new Map();
  for (const rollout of ROLLOUTS) {
    const value = String(rollout[name] ?? "");
    if (value) counts.set(value, (counts.get(value) ?? 0) + 1);
  }
  if (counts.size < 2) return null;
  const natural = (a, b) => a.localeCompare(b, "en", { numeric: true });
  const values = order ? order.filter((v) => counts.has(v)) : [...counts.keys()].sort(natural);
  return el("label", {}, spoken(label), el("select", {
    id: name, on: { change: (event) => change({ [name]: event.target.value }) },
  }, el("option", { value: "" }, `any ${label}`), ...values.map((value) =>
    el("option", { value, selected: filters[name] === value },
      `${optionText(name, value)} (${counts.get(value).toLocaleString("en")})`))));
}

function optionText(name, value) {
  if (name === "hops") return count(Number(value), "hop");
  return name === "step" ? `step ${value}` : value === "open" ? "not finished" : value;
}

/** What the rollouts that are shown come to. */
function summary(found) {
  const figures = [["rollouts", found.length.toLocaleString("en")]];
  for (const [name, { label, digits, column }] of Object.entries(DATA.table)) {
    const values = found.flatMap((rollout) => rollout.metrics[name] ?? []);
    if (column && values.length) figures.push([label, mean(values).toFixed(digits)]);
  }
  return el("div", { role: "status" }, el("dl", { class: "summary" },
    ...figures.map(([name, value]) => pair(name, value))));
}

function rows(found, show) {
  if (!found.length) {
    return [el("p", { class: "empty" }, ROLLOUTS.length
      ? "No rollout passes these filters."
      : "No rollouts were saved (run.save_rollouts_every).")];
  }
  const last = Math.ceil(found.length / PAGE) - 1;
  const page = clamp(filters.page, 0, last);
  const turn = (by, label) => el("button", {
    type: "button", disabled: page + by < 0 || page + by > last,
    on: { click: () => { filters.page = page + by; show(); scrollToRows(); } },
  }, label);
  return [
    el("ol", { class: "rows", start: page * PAGE + 1 },
      ...found.slice(page * PAGE, (page + 1) * PAGE).map(row)),
    last ? el("nav", { class: "pages", "aria-label": "pages" },
      turn(-1, "← Previous"), el("span", {}, `page ${page + 1} of ${last + 1}`), turn(1, "Next →")) : "",
  ];
}

function scrollToRows() {
  document.querySelector(".rows").scrollIntoView({ block: "start" });
}

function row(rollout) {
  const answer = rollout.answer ?? rollout.end;
  const gold = rollout.verdict === "right" ? null : ["gold ", el("b", {}, rollout.golds[0]), " · "];
  return el("li", {}, el("a", { class: "row", href: `#/rollout/${rollout.index}` },
    verdictMark(rollout),
    el("span", { class: "what" },
      el("span", { class: "question" }, rollout.question),
      el("span", { class: "meta" },
        el("b", { class: rollout.answer === null ? "nothing" : "" }, answer), " · ", gold,
        [...facts(rollout), count(rollout.searches.length, "search", "searches")].join(" · "))),
    smallBars(rollout),
    el("span", { class: "mean" }, gainText(rollout.gain), spoken(" nats per answer token"))));
}

function settings() {
  const entries = Object.entries(DATA.settings);
  if (!entries.length) return null;
  return el("details", { class: "settings" }, el("summary", {}, "Settings"),
    el("dl", {}, ...entries.map(([name, value]) => pair(name, value))));
}
