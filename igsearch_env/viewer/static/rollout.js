let asTranscript = false;

function rolloutView(rollout) {
  const group = GROUPS.get(rollout.group);
  const largest = largestAdvantage(group);
  const body = el("div", { class: "body" });
  const show = () => body.replaceChildren(
    ...(asTranscript ? [transcript(rollout, largest)] : turns(rollout, largest)));
  const mode = (label, value) => el("button", {
    type: "button", "aria-pressed": String(asTranscript === value),
    on: { click: (event) => {
      asTranscript = value;
      for (const button of event.target.parentElement.children) {
        button.setAttribute("aria-pressed", String(button === event.target));
      }
      show();
    } },
  }, label);
  show();
  return el("article", { class: "rollout" },
    path(rollout),
    el("h1", { tabindex: -1 }, rollout.question),
    outcome(rollout, group),
    worth(rollout),
    el("div", { class: "tools" },
      el("div", { class: "modes", role: "group", "aria-label": "how it is shown" },
        mode("Turns", false), mode("Transcript", true)),
      el("div", { class: "legend" }, ...sources(), shades(largest))),
    body);
}

/** Back to the list, and on to the rollouts beside this one in it. */
function path(rollout) {
  const found = matches();
  const place = found.indexOf(rollout);
  const beside = (by, label, text) => {
    const other = place < 0 ? undefined : found[place + by];
    return el("a", { class: "beside", "aria-label": label, "aria-disabled": String(!other),
      href: other ? `#/rollout/${other.index}` : null }, text);
  };
  return el("nav", { class: "path", "aria-label": "rollouts" },
    el("a", { href: "#/" }, "← All rollouts"),
    el("span", { class: "place" }, place < 0 ? "" : `${(place + 1).toLocaleString("en")} of ${found.length.toLocaleString("en")}`),
    beside(-1, "previous rollout", "‹"), beside(1, "next rollout", "›"));
}

function outcome(rollout, group) {
  const said = rollout.answer === null
    ? el("span", { class: "nothing" }, rollout.end) : el("b", {}, rollout.answer);
  return el("div", { class: "outcome" },
    el("span", { class: `answer ${rollout.verdict}` }, verdictMark(rollout), said),
    el("span", {}, "gold ", el("b", {}, rollout.golds.join(" | "))),
    rollout.f1 === null ? null : el("span", {}, `F1 ${rollout.f1.toFixed(2)}`),
    ...parts(rollout).map((part) => el("span", { class: "part" }, part)),
    ...facts(rollout).map((fact) => el("span", {}, fact)),
    group.length < 2 ? null : el("a", { class: "to-group", href: `#/group/${rollout.group}` },
      `Compare the ${group.length} rollouts of its group →`));
}

/** The components of the outcome, each with its weight. */
function parts(rollout) {
  const shown = rollout.parts.map(([name, weight, value, failed]) => value === null
    ? `${name} ${failed ? "failed" : "does not apply"}`
    : `${name} ${plain(weight)} × ${plain(value)}`);
  return rollout.unscored ? [...shown, "the score could not be had"] : shown;
}

/** One bar for each search. */
function worth(rollout) {
  if (!rollout.searches.length) return el("p", { class: "note" }, "It did not search.");
  const range = gainRange([rollout]);
  return el("figure", { class: "worth" },
    el("figcaption", {}, el("strong", {}, "What each search was worth"),
      el("span", {}, " information gain, nats per answer token")),
    el("ol", {}, ...rollout.searches.map((step, i) =>
      el("li", {}, el("a", { href: `#search-${i}`, on: { click: (event) => {
        event.preventDefault();
        document.getElementById(`search-${i}`)?.scrollIntoView({ block: "center" });
      } } },
        el("span", { class: "number" }, String(i + 1)),
        el("span", { class: "asked" }, step.query),
        gainBar(step.gain, range),
        gainText(step.gain, { "data-search": i }))))));
}

function sources() {
  return ["policy", "document", "system"].map((source) =>
    el("span", { class: `source ${source}` }, el("i"), source));
}

/** The shades of tokens; nothing where there are no advantages. */
function shades(largest) {
  if (!largest) return null;
  return el("span", { class: "scale" },
    `${signed(-largest)} `, el("i"), ` ${signed(largest)} advantage of a token`);
}

/** The rollout turn by turn. */
function turns(rollout, largest) {
  const values = rollout.searches.flatMap((step) =>
    step.log_prob === null ? [] : [step.log_prob, ...step.baselines]);
  const low = Math.min(-1, ...values) * 1.04;
  let [searches, number] = [0, 0];
  return [
    el("details", { class: "prompt" }, el("summary", {}, "Prompt"),
      el("pre", { class: "system" }, rollout.prompt)),
    ...rollout.steps.map((step) => {
      const search = step.action === "search" ? searches++ : null;
      if (!step.call) number += 1;
      const names = { answer: "Answer", tool: `Call of ${step.tool}`, invalid: "Turn that could not be carried out" };
      const name = search === null ? names[step.action]
        : `Search ${search + 1}${step.tool ? ` (${step.tool})` : ""}`;
      const call = step.call ? `, call ${step.call + 1}` : "";
      return el("section", { class: "turn", id: search === null ? null : `search-${search}` },
        el("h2", {}, name, el("span", {}, ` turn ${number}${call}${step.attempt ? `, attempt ${step.attempt + 1}` : ""}`)),
        el("div", { class: "block policy" },
          el("pre", {}, policyText(step, largest)), advantageWords(step)),
        search === null ? systemBlock(step) : searchBlock(step, rollout, low),
        step.reflection ? el("div", { class: "block system" }, el("pre", {}, step.reflection.trim())) : null);
    }),
  ];
}

function systemBlock(step) {
  if (!step.observation) return null;
  return el("div", { class: "block system" }, el("pre", {}, step.observation[1].trim()));
}

function searchBlock(step, rollout, low) {
  if (step.failed) return systemBlock(step);
  return [
    gainBlock(step, low),
    el("div", { class: "block document" }, step.documents.length
      ? el("ol", {}, ...step.documents.map((found) => documentItem(found, rollout.golds)))
      : el("p", { class: "nothing" }, "no documents"),
    step.cut.length
      ? el("p", { class: "fine" }, `cut to the budget of tokens per ${step.cut.join(", ")}`) : null),
    counterfactuals(step),
  ];
}

function gainBlock(step, low) {
  if (step.gain === null) {
    return el("p", { class: "note" }, "Its information gain was not settled.");
  }
  const base = mean(step.baselines);
  return el("div", { class: "gain-block" },
    el("div", { class: `big ${tone(step.gain)}` }, gainText(step.gain), el("span", {}, "nats per answer token")),
    el("div", { class: "why" },
      strip(step, low),
      el("p", {},
        el("span", {}, el("i", { class: "dot key", "aria-hidden": "true" }),
          " with these documents ", el("b", {}, signed(step.log_prob)), ` (${percent(step.log_prob)})`),
        el("span", {}, el("i", { class: "ring key", "aria-hidden": "true" }),
          " with evidence of other questions ", el("b", {}, signed(base)), ` (${percent(base)})`)),
      el("p", { class: "fine" }, "log-probability of the gold answer, mean over its tokens")));
}

/** The evidence of other questions that stood in for the documents. */
function counterfactuals(step) {
  if (!step.others.length) return null;
  return el("details", { class: "others" },
    el("summary", {}, `Compared with the evidence of ${count(step.others.length, "other question")}`),
    el("ol", {}, ...step.others.map((other, i) => el("li", {},
      el("div", { class: "other-head" }, el("span", {}, other.question),
        step.baselines.length > i
          ? el("data", { value: step.baselines[i], title: "log-probability of the gold answer" }, signed(step.baselines[i]))
          : null),
      el("ul", {}, ...other.documents.map((at) => {
        const [id, title, text] = DATA.documents[at];
        return el("li", {}, el("b", {}, title || id), ` ${text}`);
      })),
      other.refinement ? el("pre", {}, other.refinement.trim()) : null))));
}

/** Every character that the policy read and wrote. */
function transcript(rollout, largest) {
  return el("pre", { class: "transcript" },
    el("span", { class: "system" }, rollout.prompt),
    ...turnsOf(rollout).flatMap((calls) => [
      ...calls.map((step) => el("span", { class: "policy" }, policyText(step, largest))),
      ...calls.flatMap((step) => [
        step.observation ? el("span", { class: step.observation[0] }, step.observation[1]) : null,
        step.reflection ? el("span", { class: "system" }, step.reflection) : null,
      ]),
    ]));
}

/** The steps of each turn: more than one where it holds several calls. */
function turnsOf(rollout) {
  const turns = [];
  for (const step of rollout.steps) {
    if (step.call) turns[turns.length - 1].push(step);
    else turns.push([step]);
  }
  return turns;
}
