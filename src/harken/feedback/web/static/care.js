// Covered texts, and a break after long work.
import { remember, remembered } from "/static/task.js";

// --- covered texts: blurred by the style sheet, and here also out of reach of keys and screen readers
const uncover = document.getElementById("uncover");
const form = document.getElementById("answer");
const needText = form.querySelectorAll("button[value=answer], button[value=both_bad]");
const WHILE_COVERED = ["s", "u", "f", "z", "?", "v", "Tab", "Escape", "Shift", "Control", "Alt", "Meta"];

function cover() {
  for (const part of document.querySelectorAll(".covered")) part.inert = !uncover.checked;
  for (const button of needText) button.disabled = !uncover.checked;
}
function stopKeys(event) {
  const writes = event.target.matches("textarea, select, input:not([type=checkbox])");
  if (event.key === "v" && !writes && !event.ctrlKey && !event.metaKey && document.getElementById("keys-on").checked) {
    event.stopPropagation();
    uncover.click();
  } else if (!uncover.checked && !writes && !WHILE_COVERED.includes(event.key)) {
    event.stopPropagation(); // the browser still does what the key does by itself, such as scroll or press a button
  }
}
if (uncover) {
  uncover.addEventListener("change", cover);
  addEventListener("keydown", stopKeys, { capture: true });
  cover();
}

// --- a break: minutes of work with no pause of five between, over all tasks of this browser
const PAUSE_MS = 5 * 60000, LATER_MS = 10 * 60000, LOOK_MS = 15000;
const breakMs = Number(form.dataset.breakMinutes) * 60000;
const notice = document.getElementById("break");
let lastInput = Date.now();

function look() {
  const now = Date.now();
  let [since, last] = (remembered("worked") ?? "").split(" ").map(Number);
  if (!last || now - last > PAUSE_MS) since = now;
  if (now - lastInput < PAUSE_MS) last = lastInput;
  remember("worked", `${since} ${last || now}`);
  document.getElementById("break-minutes").textContent = String(Math.round((now - since) / 60000));
  notice.hidden = now - since < breakMs;
}
if (breakMs) {
  for (const kind of ["pointermove", "keydown", "wheel", "touchstart"]) {
    addEventListener(kind, () => { lastInput = Date.now(); }, { passive: true });
  }
  document.getElementById("break-later").addEventListener("click", () => {
    const now = Date.now();
    remember("worked", `${now - breakMs + LATER_MS} ${now}`);
    notice.hidden = true;
  });
  setInterval(look, LOOK_MS);
  look();
}
