const DATA = JSON.parse(document.getElementById("data").textContent);
const ROLLOUTS = DATA.rollouts;

/** Rollouts by group, in the order in which they were played. */
const GROUPS = new Map();

ROLLOUTS.forEach((rollout, index) => {
  rollout.index = index;
  rollout.searches = rollout.steps.filter((step) => step.action === "search");
  rollout.gains = rollout.searches.map((step) => step.gain).filter((gain) => gain !== null);
  rollout.gain = mean(rollout.gains);
  rollout.verdict = rollout.em === null ? "open" : rollout.em === 1 ? "right" : "wrong";
  rollout.words = [rollout.question, rollout.answer ?? "", ...rollout.golds, rollout.id]
    .join("\n").toLowerCase();
  if (!GROUPS.has(rollout.group)) GROUPS.set(rollout.group, []);
  GROUPS.get(rollout.group).push(rollout);
});

const GAINS = ROLLOUTS.flatMap((rollout) => rollout.gains).sort((a, b) => a - b);

/** What fills a small bar, in nats: all but the largest tenth of gains fit. */
const FULL_BAR = Math.max(0.5, quantile(GAINS.map(Math.abs).sort((a, b) => a - b), 0.9));

function quantile(sorted, share) {
  return sorted.length ? sorted[Math.floor(share * (sorted.length - 1))] : 0;
}

/** The largest advantage of some rollouts, regardless of sign; 0 where there are none. */
function largestAdvantage(rollouts) {
  let largest = 0;
  for (const rollout of rollouts) {
    for (const step of rollout.steps) {
      for (const value of step.advantages) largest = Math.max(largest, Math.abs(value ?? 0));
    }
  }
  return largest;
}

/** What a rollout is about, in a few words. */
function facts(rollout) {
  return [
    rollout.dataset,
    rollout.hops === null ? null : count(rollout.hops, "hop"),
    rollout.step === null ? null : `step ${rollout.step}`,
  ].filter(Boolean);
}

const VERDICTS = { right: ["✓", "right"], wrong: ["✗", "wrong"], open: ["…", "not finished"] };

function verdictMark(rollout) {
  const [sign, word] = VERDICTS[rollout.verdict];
  return el("span", { class: `verdict ${rollout.verdict}`, title: word },
    el("span", { "aria-hidden": "true" }, sign), spoken(`${word}: `));
}

/** A gain as text; the exact number is its value. */
function gainText(value, attributes = {}) {
  if (value === null) return el("span", { class: "gain none", title: "not settled" }, "–");
  return el("data", { ...attributes, class: `gain ${tone(value)}`, value }, signed(value));
}
