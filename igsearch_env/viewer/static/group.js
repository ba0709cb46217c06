/** The rollouts of a group in columns, their searches level with each other. */
function groupView(group) {
  const first = group[0];
  const largest = largestAdvantage(group);
  const range = gainRange(group);
  const searches = Math.max(...group.map((rollout) => rollout.searches.length));
  const right = group.filter((rollout) => rollout.verdict === "right").length;
  return el("article", { class: "group" },
    el("nav", { class: "path", "aria-label": "rollouts" }, el("a", { href: "#/" }, "← All rollouts")),
    el("h1", { tabindex: -1 }, first.question),
    el("div", { class: "outcome" },
      el("span", {}, "gold ", el("b", {}, first.golds.join(" | "))),
      el("span", {}, `${right} of ${group.length} right`),
      ...facts(first).map((fact) => el("span", {}, fact))),
    el("div", { class: "legend tools" }, shades(largest)),
    el("div", { class: "columns", role: "list", tabindex: 0, "aria-label": "rollouts of the group",
      vars: { "--rows": searches + 2, "--columns": group.length } },
      ...group.map((rollout, i) => column(rollout, i, searches, range, largest))));
}

function column(rollout, place, searches, range, largest) {
  const advantages = rollout.steps.flatMap((step) => step.advantages).filter((v) => v !== null);
  const cells = Array.from({ length: searches }, (_, t) => {
    const step = rollout.searches[t];
    if (!step) return el("div", { class: "cell gone", "aria-hidden": "true" });
    return el("div", { class: "cell" },
      el("div", { class: "cell-head" }, `search ${t + 1}`,
        gainText(step.gain, { "data-rollout": rollout.index, "data-search": t })),
      gainBar(step.gain, range),
      el("div", { class: "asked" }, policyText(step, largest, { whole: false })),
      step.failed ? el("p", { class: "nothing" }, "the search failed") : documentTitles(step));
  });
  return el("section", { class: "column", role: "listitem", vars: { "--rows": searches + 2 } },
    el("a", { class: "cell head", href: `#/rollout/${rollout.index}` },
      el("span", { class: "place" }, `Rollout ${place + 1}`),
      el("span", { class: `answer ${rollout.verdict}` }, verdictMark(rollout),
        rollout.answer ?? el("span", { class: "nothing" }, rollout.end))),
    ...cells,
    el("dl", { class: "cell foot" },
      pair("outcome", rollout.outcome === null ? "–" : plain(rollout.outcome).replace(/\.?0+$/, "")),
      pair("mean gain", gainText(rollout.gain)),
      advantages.length ? pair("mean advantage", signed(mean(advantages))) : null));
}
