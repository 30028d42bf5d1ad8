// What every task page does: keys, drafts, time, sending. A kind's own script imports `onKey`, `written` and `changed` from here.

const form = document.getElementById("answer");
const trouble = document.getElementById("trouble");
const help = document.getElementById("help");
const DRAFT_PAUSE_MS = 1200;
const KEEP_MS = 60000;
const IDLE_MS = 60000;

// Remembered settings are a convenience: a browser that forbids storage loses nothing else.
export function remember(name, value) {
  try { localStorage.setItem(`harken-${name}`, value); } catch (error) { console.info("not remembered", error.name); }
}
export function remembered(name) {
  try { return localStorage.getItem(`harken-${name}`); } catch (error) { return null; }
}

// --- time: seconds in which the page was seen and something was done at most a minute ago
let active = 0, last = performance.now(), lastInput = last;
function tick() {
  const now = performance.now();
  if (!document.hidden && now - lastInput < IDLE_MS) active += now - last;
  last = now;
}
setInterval(tick, 1000);
for (const kind of ["pointermove", "keydown", "wheel", "touchstart", "input"]) {
  addEventListener(kind, () => { tick(); lastInput = performance.now(); }, { passive: true });
}
document.addEventListener("visibilitychange", tick);

// --- drafts
let timer = 0, unsaved = false, sending = false;
const status = document.getElementById("draft");
const answered = "answered" in form.dataset;

function fields() {
  return new URLSearchParams(new FormData(form));
}
async function keep(withForm) {
  const body = withForm ? fields() : new URLSearchParams({ csrf: form.elements.csrf.value });
  if (!withForm) body.set("keep_only", "1");
  if (withForm) unsaved = false;
  try {
    const response = await fetch(`/tasks/${form.dataset.lease}/draft`, { method: "POST", body, headers: { accept: "application/json" } });
    if (!response.ok) throw new Error((await response.json()).error);
    const state = await response.json();
    if (withForm) status.textContent = "Draft saved";
    if (state.answered && !answered) warn("You answered this task in another window. Sending this one will be refused unless it is the same.");
    else if (!state.held && !answered) warn("Your time for this task is over and somebody else has it now. You can still send your answer.");
    else if (!sending) trouble.hidden = true;
  } catch (error) {
    if (withForm) unsaved = true;
    status.textContent = "Draft not saved";
    if (error.message && !(error instanceof TypeError)) warn(error.message);
  }
}
export function changed() {
  if (answered) return;
  unsaved = true;
  status.textContent = "";
  clearTimeout(timer);
  timer = setTimeout(() => keep(true), DRAFT_PAUSE_MS);
}
function warn(text) {
  trouble.textContent = text;
  trouble.hidden = false;
}
form.addEventListener("input", changed);
form.addEventListener("change", changed);
setInterval(() => { if (!document.hidden && !sending) keep(unsaved && !answered); }, KEEP_MS);

// --- sending: the page stays, with everything on it, until the server has said that the answer is saved
async function send(event) {
  event.preventDefault();
  if (sending) return;
  const button = event.submitter ?? form.querySelector("button[value=answer]");
  clearTimeout(timer);
  tick();
  form.elements.active_s.value = (active / 1000).toFixed(1);
  const body = fields();
  body.set("outcome", button.value);
  sending = true;
  status.textContent = "Saving …";
  try {
    const response = await fetch(form.action, { method: "POST", body, headers: { accept: "text/html" } });
    if (response.redirected) { location.assign(response.url); return; }
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    warn((page.querySelector(".problem") ?? page.querySelector("main p"))?.textContent ?? `The server answered ${response.status}.`);
  } catch (error) {
    warn("The server cannot be reached. Your answer is still here; send it again in a moment.");
  }
  status.textContent = "Not saved";
  sending = false;
  trouble.scrollIntoView({ block: "nearest" });
}
form.addEventListener("submit", send);

// --- keys
const listeners = [];
export function onKey(listener) { listeners.push(listener); }
// An answer that is written: a key goes to its box.
export function written(box) {
  onKey((event) => {
    if (event.key !== "e" || event.altKey) return false;
    box.focus();
    return true;
  });
}
const keysOn = document.getElementById("keys-on");
keysOn.checked = remembered("keys") !== "off";
keysOn.addEventListener("change", () => remember("keys", keysOn.checked ? "on" : "off"));

function open(id, field) {
  const details = document.getElementById(field)?.closest("details");
  if (!details) return;
  details.open = true;
  document.getElementById(field).focus();
}
function press(button) {
  if (button) form.requestSubmit(button);
}
const own = {
  w: () => open("reasons", "rationale"),
  f: () => open("flag", "flag_reason"),
  z: () => document.getElementById("undo")?.click(),
  r: () => rawToggle.click(),
  "?": () => help.showModal(),
  Enter: () => press(form.querySelector("button[value=answer]")),
};
addEventListener("keydown", (event) => {
  const target = event.target;
  const writes = target.matches("textarea, input:not([type=radio], [type=checkbox]), select");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); own.Enter(); return; }
  if (event.key === "Escape" && writes) { target.blur(); return; }
  if (event.ctrlKey || event.metaKey || event.isComposing || help.open) return;
  if (!keysOn.checked && event.key.length === 1) return;
  if (writes) return;
  if (event.key === "Enter" && target.matches("button, a, summary")) return;
  for (const listener of listeners) {
    if (listener(event)) { event.preventDefault(); return; }
  }
  if (event.altKey) return;
  const button = event.key.length === 1 && form.querySelector(`button[data-key="${CSS.escape(event.key)}"]`);
  const act = button ? () => press(button) : Object.hasOwn(own, event.key) && own[event.key];
  if (act) { event.preventDefault(); act(); }
});

// --- raw text, help, guideline
const rawToggle = document.getElementById("raw-toggle");
function setRaw(raw) {
  rawToggle.setAttribute("aria-pressed", String(raw));
  for (const text of document.querySelectorAll(".work .rich")) text.hidden = raw;
  for (const text of document.querySelectorAll(".work .raw")) text.hidden = !raw;
  remember("raw", raw ? "on" : "off");
}
rawToggle.hidden = false;
rawToggle.addEventListener("click", () => setRaw(rawToggle.getAttribute("aria-pressed") !== "true"));
if (remembered("raw") === "on") setRaw(true);
const helpOpen = document.getElementById("help-open");
helpOpen.hidden = false;
helpOpen.addEventListener("click", () => help.showModal());
const guideline = document.getElementById("guideline");
if (guideline) {
  const narrow = matchMedia("(max-width: 52rem)").matches;
  // In a narrow window the guideline stands above the task: open for the first task, then closed.
  if (narrow && remembered("guideline-seen") === location.host + document.title) guideline.open = false;
  remember("guideline-seen", location.host + document.title);
}
