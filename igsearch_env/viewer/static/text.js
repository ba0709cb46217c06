/** Where a turn changes: at the ends of tokens, of tags and of the query. */
function pieces(step) {
  const points = [...step.turn];
  const tags = [];
  let place = 0;
  for (const part of step.turn.split(/(<\/?[\w-]+>)/)) {
    const end = place + [...part].length;
    if (/^<\/?[\w-]+>$/.test(part)) tags.push([place, end]);
    place = end;
  }
  const inside = (spans, at) => spans.some(([start, end]) => start <= at && at < end);
  const query = step.span ? [step.span] : [];
  const cuts = new Set([0, points.length, ...step.ends, ...tags.flat(), ...query.flat()]);
  const sorted = [...cuts].sort((a, b) => a - b);
  let token = 0;
  return sorted.slice(0, -1).map((start, i) => {
    // A character may take several tokens: it is shaded as the one that completes it.
    while (token < step.ends.length && step.ends[token] <= start) token += 1;
    return {
      start,
      text: points.slice(start, sorted[i + 1]).join(""),
      tag: inside(tags, start),
      query: inside(query, start),
      token: token < step.ends.length ? token : null,
    };
  });
}

/** What the policy wrote, its tags dimmed, its query set off, its tokens shaded by advantage.
 *  @param largest the advantage of the darkest shade; 0 for no shading. */
function policyText(step, largest, { whole = true } = {}) {
  const found = pieces(step).filter((piece) => whole || piece.query);
  if (!found.length || (found.length === 1 && !found[0].text)) {
    return el("span", { class: "nothing" }, "nothing");
  }
  return el("span", { class: "policy-text" }, ...found.map((piece) => {
    const value = largest && piece.token !== null ? step.advantages[piece.token] : null;
    const names = [piece.tag ? "tag" : null, piece.query ? "query" : null];
    if (value === null || value === undefined) {
      const name = names.filter(Boolean).join(" ");
      return name ? el("span", { class: name }, piece.text) : piece.text;
    }
    return el("span", {
      class: ["token", tone(value), ...names].filter(Boolean).join(" "),
      title: `advantage ${signed(value, 3)}`,
      vars: { "--shade": `${Math.round(68 * Math.abs(value) / largest)}%` },
    }, piece.text);
  }));
}

/** In words: the mean advantage on the query, and on the rest of the turn. */
function advantageWords(step) {
  const [start, end] = step.span ?? [0, 0];
  const sides = { query: [], rest: [] };
  step.advantages.forEach((value, i) => {
    if (value === null) return;
    const from = i ? step.ends[i - 1] : 0;
    sides[step.span && from >= start && step.ends[i] <= end ? "query" : "rest"].push(value);
  });
  if (!step.advantages.length) return null;
  const [query, rest] = [mean(sides.query), mean(sides.rest)];
  return el("span", { class: "words" }, "advantage ",
    query === null ? null : [el("b", {}, signed(query)), " on the query, "],
    rest === null ? null : [el("b", {}, signed(rest)), query === null ? "" : " elsewhere"]);
}

const LETTER = "[\\p{L}\\p{N}_]";

/** A passage, with the gold answers that stand in it marked. */
function marked(text, golds) {
  const wanted = golds.map((gold) => gold.trim()).filter((gold) => gold.length > 1)
    .map((gold) => gold.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  if (!wanted.length) return [text];
  const parts = text.split(new RegExp(`(?<!${LETTER})(${wanted.join("|")})(?!${LETTER})`, "giu"));
  return parts.map((part, i) => (i % 2 ? el("mark", {}, part) : part));
}

/** A retrieved document. */
function documentItem(found, golds) {
  const [id, title, text] = DATA.documents[found.at];
  return el("li", { class: `document${found.gold ? " gold" : ""}` },
    el("div", { class: "document-head" },
      el("span", { class: "title" }, title || id),
      found.gold ? el("span", { class: "badge gold" }, "gold passage") : null,
      found.answer ? el("span", { class: "badge" }, "holds the answer") : null,
      found.score === null ? null
        : el("span", { class: "score", title: "score of the retriever" }, found.score.toFixed(2))),
    el("p", {}, ...(found.answer ? marked(text, golds) : [text])));
}

/** Titles of documents, the gold ones starred. */
function documentTitles(step) {
  return el("ul", { class: "titles" }, ...step.documents.map((found) => {
    const [id, title] = DATA.documents[found.at];
    return el("li", { class: found.gold ? "gold" : "" },
      found.gold ? [el("span", { "aria-hidden": "true" }, "★ "), spoken("gold passage: ")] : null,
      title || id);
  }));
}
