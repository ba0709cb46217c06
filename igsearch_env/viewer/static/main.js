const MAIN = document.getElementById("main");
const VIEWS = [["#/", "Rollouts"], ["#/curves", "Curves"]];
let listScroll = 0;
let shown = null;

/** Go to an address at once: the event that tells of it comes late for a key that is held down. */
function go(address) {
  location.hash = address;
  route();
}

/** Show what the address names; an unknown one is the list. */
function route() {
  if (shown?.address === location.hash) return;
  if (shown?.kind === "list") listScroll = shown.scroll;
  const [, kind = "", number = ""] = location.hash.split("/");
  const rollout = kind === "rollout" ? ROLLOUTS[Number(number)] : undefined;
  const group = kind === "group" ? GROUPS.get(Number(number)) : undefined;
  if (rollout) show({ kind, rollout }, rolloutView(rollout), rollout.question);
  else if (group) show({ kind, group }, groupView(group), group[0].question);
  else if (kind === "curves" && DATA.metrics.length) show({ kind }, curvesView(), "Training curves");
  else show({ kind: "list", scroll: listScroll }, listView(), "rollouts");
}

function show(what, view, title) {
  const before = shown;
  shown = { ...what, address: location.hash };
  MAIN.replaceChildren(view);
  document.title = `${title} · ${DATA.name}`;
  for (const link of document.querySelectorAll("#nav a")) {
    const here = link.hash === (what.kind === "curves" ? "#/curves" : "#/");
    link.toggleAttribute("data-here", here);
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  scrollTo(0, what.kind === "list" ? listScroll : 0);
  if (before) MAIN.querySelector("h1").focus({ preventScroll: true });
}

function navigation() {
  if (!DATA.metrics.length) return;
  document.getElementById("nav").replaceChildren(
    ...VIEWS.map(([href, name]) => el("a", { href }, name)));
}

function step(by) {
  const found = matches();
  const next = found[found.indexOf(shown.rollout) + by];
  if (next) go(`#/rollout/${next.index}`);
}

const KEYS = {
  "/": () => {
    go("#/");
    document.getElementById("search").focus();
  },
  j: () => shown.rollout && step(1),
  k: () => shown.rollout && step(-1),
  g: () => {
    if (shown.rollout) go(`#/group/${shown.rollout.group}`);
  },
  Escape: () => go("#/"),
};

addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input, select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (Object.hasOwn(KEYS, event.key)) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

addEventListener("scroll", () => {
  if (shown?.kind === "list") shown.scroll = scrollY;
}, { passive: true });
addEventListener("hashchange", route);

/** The button goes round: as the system has it, light, dark. */
const THEMES = { "": ["◐", "automatic"], light: ["○", "light"], dark: ["●", "dark"] };

function theme(name) {
  document.documentElement.dataset.theme = name;
  const [sign, word] = THEMES[name];
  document.getElementById("theme").replaceChildren(
    el("span", { "aria-hidden": "true" }, sign), spoken(`colours: ${word}`));
}

document.getElementById("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  theme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]);
});

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  MAIN.focus();
});

history.scrollRestoration = "manual"; // show() brings the list back to where it was
theme("");
navigation();
route();
performance.mark("shown");
