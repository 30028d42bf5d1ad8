import { onKey, changed } from "../task.js";

// The select of each answer holds its rank and is what is sent; buttons and dragging change the order and set the ranks.
const list = document.getElementById("ranking");
const items = () => [...list.children];
const rankOf = (item) => item.querySelector("select");
let current = list.firstElementChild;

function mark(item, focus = true) {
  if (!item) return;
  current = item;
  for (const one of items()) one.classList.toggle("current", one === item);
  if (focus) item.focus();
}
function sort() {
  const focused = document.activeElement;
  const key = (item) => Number(rankOf(item).value) || 99;
  items().map((item, index) => [key(item), index, item]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).forEach((entry) => list.append(entry[2]));
  focused?.focus();
}
function rank(item, value) {
  rankOf(item).value = String(value);
  changed();
}
function number() {
  items().forEach((item, index) => { rankOf(item).value = String(index + 1); });
  changed();
}
function move(item, by) {
  const all = items();
  const to = all.indexOf(item) + by;
  if (to < 0 || to >= all.length) return;
  if (by < 0) all[to].before(item); else all[to].after(item);
  number();
  mark(item);
}
onKey((event) => {
  const all = items();
  const at = all.indexOf(current);
  if (event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) { move(current, event.key === "ArrowUp" ? -1 : 1); return true; }
  if (event.altKey) return false;
  if (event.key === "j" || event.key === "k") { mark(all[Math.min(all.length - 1, Math.max(0, at + (event.key === "j" ? 1 : -1)))]); return true; }
  const digit = Number(event.key);
  if (event.key.length === 1 && digit >= 1 && digit <= all.length) {
    rank(current, digit);
    // On to the next that has no rank; the order on the page changes only once all have one, so nothing jumps away.
    const next = [...all.slice(at + 1), ...all.slice(0, at)].find((item) => !rankOf(item).value);
    if (next) mark(next); else { sort(); mark(current); }
    return true;
  }
  return false;
});
list.addEventListener("focusin", (event) => { const item = event.target.closest("li"); if (item) mark(item, false); });
list.addEventListener("click", (event) => {
  const button = event.target.closest(".move");
  if (button) { move(button.closest("li"), Number(button.dataset.move)); button.focus(); }
});
list.addEventListener("change", () => { if (items().every((item) => rankOf(item).value)) sort(); });

let dragged = null;
list.addEventListener("dragstart", (event) => {
  dragged = event.target.closest("li");
  event.dataTransfer.effectAllowed = "move";
  event.dataTransfer.setDragImage(dragged, 10, 10);
  dragged.classList.add("dragged");
});
list.addEventListener("dragover", (event) => {
  const over = event.target.closest("li");
  if (!dragged || !over || over === dragged) return;
  event.preventDefault();
  const box = over.getBoundingClientRect();
  if (event.clientY < box.top + box.height / 2) over.before(dragged); else over.after(dragged);
});
list.addEventListener("drop", (event) => event.preventDefault());
list.addEventListener("dragend", () => { dragged.classList.remove("dragged"); dragged = null; number(); });

for (const moves of document.querySelectorAll(".moves")) moves.hidden = false;
if (items().every((item) => rankOf(item).value)) sort();
mark(items().find((item) => !rankOf(item).value) ?? list.firstElementChild, false);
