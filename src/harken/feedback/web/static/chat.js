// The live chat: send a message, show two answers as they are written, vote at any time.

const chat = document.getElementById("chat");
const sayForm = document.getElementById("say"), voteForm = document.getElementById("vote");
const text = document.getElementById("text"), said = document.getElementById("said"), now = document.getElementById("now");
const trouble = document.getElementById("trouble"), status = document.getElementById("status");
const stopButton = document.getElementById("stop"), againButton = document.getElementById("again");
const help = document.getElementById("help");
const sides = [...document.querySelectorAll(".completion.live")];
const choices = [...document.querySelectorAll("input[name=choice]")];
const csrf = voteForm.elements.csrf.value;
const conversation = chat.dataset.conversation;
const draftName = `harken-chat-${conversation}`;
const STATES = { stop: "", length: "cut off: as long as allowed", stopped: "stopped" };

// A message that was not answered outlives a reload; a browser that forbids storage loses nothing else.
function remember(value) {
  try { value ? sessionStorage.setItem(draftName, value) : sessionStorage.removeItem(draftName); } catch (error) { console.info("not remembered", error.name); }
}
function remembered() {
  try { return sessionStorage.getItem(draftName) ?? ""; } catch (error) { return ""; }
}

let turn = chat.dataset.turn ?? "", writing = false, voting = false, message = "";
let seen = [0, 0], failed = [false, false], ended = [true, true];

function warn(words) {
  trouble.textContent = words;
  trouble.hidden = !words;
  if (words) trouble.scrollIntoView({ block: "nearest" });
}
async function post(path, fields) {
  const body = new URLSearchParams({ csrf, "seen-1": seen[0], "seen-2": seen[1], ...fields });
  const response = await fetch(path, { method: "POST", body, headers: { accept: "application/json" } });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}
function problemOf(error, fallback) {
  return error instanceof TypeError || error instanceof SyntaxError || !error.message ? fallback : error.message;
}

// --- a message and its answers
function clear() {
  seen = [0, 0]; failed = [false, false]; ended = [false, false];
  turn = "";
  for (const side of sides) {
    side.className = "completion live writing";
    side.querySelector("[data-text]").replaceChildren();
    side.querySelector("[data-rich]").replaceChildren();
    side.querySelector("[data-named]").hidden = true;
    uncovered(side);
    side.querySelector("[data-state]").textContent = "";
    side.querySelector(".failure")?.remove();
  }
  for (const choice of choices) choice.checked = false;
  paint();
}
// What the server sends is escaped or cleaned there; parsed into a document of its own, whatever else it were could not run.
function parsed(html) {
  return new DOMParser().parseFromString(`<body>${html}`, "text/html").body.childNodes;
}
// A covered answer shows nothing; an answer that has ended shows its Markdown rendered, else the text as it comes.
function uncovered(side) {
  const isCovered = !side.querySelector("[data-named]").hidden, rich = side.querySelector("[data-rich]");
  rich.hidden = isCovered || !rich.hasChildNodes();
  side.querySelector("[data-text]").hidden = isCovered || rich.hasChildNodes();
}
function on(event) {
  if (event.event === "turn") { turn = event.id; return; }
  const place = event.side - 1, side = sides[place], box = side.querySelector("[data-text]");
  if (event.event === "named") {
    side.querySelector("[data-named]").hidden = false;
    uncovered(side);
  } else if (event.event === "text") {
    box.append(...parsed(event.html));
    seen[place] = event.end;
  } else {
    ended[place] = true;
    side.classList.remove("writing");
    if (event.event === "done") {
      side.querySelector("[data-state]").textContent = STATES[event.reason] ?? "";
      side.querySelector("[data-rich]").append(...parsed(event.html));
      uncovered(side);
    } else {
      failed[place] = true;
      side.classList.add("failed");
      const words = document.createElement("p");
      words.className = "failure";
      words.setAttribute("role", "alert");
      words.textContent = `There is no answer here: ${event.message}`;
      side.append(words);
    }
  }
  controls();
}
async function read(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    const events = waiting.split("\n\n");
    waiting = events.pop();
    for (const one of events) {
      const data = one.split("\n").find((line) => line.startsWith("data: "));
      if (data) on(JSON.parse(data.slice(6)));
    }
  }
}
async function say(words) {
  if (writing || !words.trim()) return;
  message = words;
  remember(words);
  writing = true;
  warn("");
  clear();
  said.textContent = words;
  now.hidden = false;
  sayForm.hidden = true;
  status.textContent = "Both models are writing …";
  controls();
  for (const old of document.querySelectorAll("#receipt, .lead")) old.hidden = true;
  now.scrollIntoView({ block: "start" });
  stopButton.focus({ preventScroll: true });
  try {
    const body = new URLSearchParams({ csrf, text: words });
    const response = await fetch(`/chat/${conversation}/say`, { method: "POST", body, headers: { accept: "text/event-stream" } });
    if (!response.ok) throw new Error((await response.json()).error);
    await read(response);
    if (!voting && ended.every(Boolean) && !failed.some(Boolean)) {
      await post(`/chat/turns/${turn}/keep`, {});
      remember("");
    }
    if (!ended.every(Boolean) && !voting) throw new TypeError("the stream broke off");
    if (!voting) status.textContent = failed.some(Boolean) ? "There is nothing to compare: send it again." : "Both have answered.";
  } catch (error) {
    if (!voting) {
      back(problemOf(error, "The connection was lost. Your message is still here; send it again in a moment."));
    }
  }
  writing = false;
  controls();
}
function back(words) {
  now.hidden = true;
  sayForm.hidden = false;
  text.value = message;
  text.focus();
  warn(words);
}

// --- the vote
function paint() {
  const chosen = choices.find((choice) => choice.checked)?.value ?? "";
  for (const side of sides) side.classList.toggle("chosen", chosen.startsWith(side.dataset.place));
}
function controls() {
  const readable = seen.every((length) => length > 0) || (!writing && turn !== "" && !failed.some(Boolean));
  const votable = readable && !failed.some(Boolean) && !voting;
  for (const button of voteForm.querySelectorAll("button[name=outcome]")) button.disabled = !votable;
  stopButton.hidden = !writing || ended.every(Boolean);
  againButton.hidden = writing || !failed.some(Boolean);
}
async function vote(outcome) {
  if (voting || !turn) return;
  const choice = choices.find((one) => one.checked)?.value ?? "";
  if (outcome === "answer" && !choice) { warn("Choose which answer is better first."); return; }
  voting = true;
  warn("");
  status.textContent = "Saving …";
  controls();
  try {
    await post(`/chat/turns/${turn}/vote`, { outcome, choice, rationale: voteForm.elements.rationale.value });
    remember("");
    location.assign(`/chat/${conversation}?saved=${turn}`);
  } catch (error) {
    voting = false;
    status.textContent = "Not saved";
    warn(problemOf(error, "The server cannot be reached. Your vote is still here; send it again in a moment."));
    controls();
  }
}
async function stop() {
  if (!writing || !turn) return;
  status.textContent = "Stopping …";
  try { await post(`/chat/turns/${turn}/stop`, {}); } catch (error) { warn(problemOf(error, "The server cannot be reached.")); }
}

sayForm.addEventListener("submit", (event) => { event.preventDefault(); say(text.value); });
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); say(text.value); }
});
text.addEventListener("input", () => remember(text.value));
voteForm.addEventListener("submit", (event) => { event.preventDefault(); vote((event.submitter ?? voteForm.querySelector("[value=answer]")).value); });
stopButton.addEventListener("click", stop);
againButton.addEventListener("click", () => say(message || said.textContent));
for (const choice of choices) choice.addEventListener("change", paint);
for (const side of sides) {
  side.querySelector("[data-uncover]").addEventListener("click", () => {
    side.querySelector("[data-named]").hidden = true;
    uncovered(side);
    side.querySelector("[data-text]:not([hidden]), [data-rich]:not([hidden])").focus();
  });
}

// --- keys; whether single ones work is remembered together with the task pages
const keysOn = document.getElementById("keys-on");
try { keysOn.checked = localStorage.getItem("harken-keys") !== "off"; } catch (error) { console.info("not remembered", error.name); }
keysOn.addEventListener("change", () => {
  try { localStorage.setItem("harken-keys", keysOn.checked ? "on" : "off"); } catch (error) { console.info("not remembered", error.name); }
});
addEventListener("keydown", (event) => {
  const target = event.target, writes = target.matches("textarea");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !now.hidden) { event.preventDefault(); vote("answer"); return; }
  if (event.key === "Escape" && !help.open) { if (writes) target.blur(); else stop(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || help.open || writes) return;
  if (!keysOn.checked && event.key.length === 1) return;
  const digit = Number(event.key);
  if (event.key === "?") { event.preventDefault(); help.showModal(); return; }
  if (now.hidden) return;
  if (event.key.length === 1 && digit >= 1 && digit <= choices.length) {
    event.preventDefault();
    choices[digit - 1].checked = true;
    choices[digit - 1].focus();
    paint();
  } else if (event.key === "Enter" && !target.matches("button, a, summary")) { event.preventDefault(); vote("answer"); }
  else if (event.key === "b" || event.key === "u") { event.preventDefault(); voteForm.querySelector(`[data-key=${event.key}]`).click(); }
  else if (event.key === "a" && !againButton.hidden) { event.preventDefault(); againButton.click(); }
  else if (event.key === "w") {
    event.preventDefault();
    const box = document.getElementById("rationale");
    box.closest("details").open = true;
    box.focus();
  }
});

const helpOpen = document.getElementById("help-open");
helpOpen.hidden = false;
helpOpen.addEventListener("click", () => help.showModal());
if (turn) {
  const box = sides.map((side) => side.querySelector("[data-text]").textContent.length);
  seen = box;
  status.textContent = "Both have answered.";
} else if (remembered()) {
  text.value = remembered();
}
controls();
