import { onKey, changed } from "../task.js";

// Marks are kept as [start, end, label, severity] with offsets in code points; the browser counts UTF-16 units.
const view = document.getElementById("marked");
// As JSON: in an attribute line ends of other systems would be changed, and with them all offsets behind.
const text = JSON.parse(view.dataset.text);
const letters = [...text];
const field = document.getElementById("spans");
const label = document.getElementById("span-label");
const severity = document.getElementById("span-severity");
const list = document.getElementById("marks");
let marks = JSON.parse(field.value || "[]");
let cursor = 0, anchor = 0;

// A character that cannot be seen stands on the page as its code; it counts as one.
function offsetOf(node, offset) {
  let count = 0;
  const walk = (at) => {
    if (at === node && at.nodeType === Node.TEXT_NODE) { count += at.parentElement.closest(".invisible") ? (offset ? 1 : 0) : [...at.data.slice(0, offset)].length; return true; }
    if (at === node) { for (const child of [...at.childNodes].slice(0, offset)) walk(child); return true; }
    if (at.nodeType === Node.TEXT_NODE) { count += [...at.data].length; return false; }
    if (at.classList?.contains("invisible") && !at.contains(node)) { count += 1; return false; }
    for (const child of at.childNodes) if (walk(child)) return true;
    return false;
  };
  walk(view);
  return count;
}
function piece(from, to) {
  const part = document.createDocumentFragment();
  for (const letter of letters.slice(from, to)) {
    if (hidden.has(letter)) { const code = document.createElement("span"); code.className = "invisible"; code.textContent = hidden.get(letter); part.append(code); }
    else part.append(letter);
  }
  part.normalize();
  return part;
}
const hidden = new Map();
for (const code of view.querySelectorAll(".invisible")) hidden.set(String.fromCodePoint(parseInt(code.textContent.slice(2), 16)), code.textContent);

function paint() {
  const edges = [...new Set([0, letters.length, ...marks.flatMap((mark) => [mark[0], mark[1]])])].sort((a, b) => a - b);
  view.replaceChildren();
  for (let i = 0; i + 1 < edges.length; i++) {
    const inside = marks.filter((mark) => mark[0] <= edges[i] && mark[1] >= edges[i + 1]);
    const part = piece(edges[i], edges[i + 1]);
    if (!inside.length) { view.append(part); continue; }
    const element = document.createElement("mark");
    element.title = inside.map((mark) => `${mark[2]}, ${mark[3]}`).join("; ");
    element.append(part);
    view.append(element);
  }
  list.replaceChildren(...marks.map((mark, index) => {
    const item = document.createElement("li");
    const words = document.createElement("q");
    words.dir = "auto";
    words.textContent = letters.slice(mark[0], mark[1]).join("").slice(0, 80);
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "Remove";
    remove.addEventListener("click", () => { marks.splice(index, 1); save(); });
    item.append(words, ` ${mark[2]}, ${mark[3]} `, remove);
    return item;
  }));
}
function save() {
  field.value = JSON.stringify(marks);
  paint();
  changed();
}
function selected() {
  const selection = getSelection();
  if (!selection.rangeCount || !view.contains(selection.anchorNode) || !view.contains(selection.focusNode)) return null;
  const a = offsetOf(selection.anchorNode, selection.anchorOffset), b = offsetOf(selection.focusNode, selection.focusOffset);
  return a === b ? null : [Math.min(a, b), Math.max(a, b)];
}
function add() {
  const range = selected();
  if (!range) return;
  let [from, to] = range;
  while (from < to && blank(from)) from++;
  while (from < to && blank(to - 1)) to--;
  if (from === to) return;
  marks.push([from, to, label.value, severity.value]);
  marks.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  getSelection().removeAllRanges();
  save();
}
// By keyboard: a cursor that moves by words, with Shift a selection.
function place(offset) {
  let left = offset;
  const walker = document.createTreeWalker(view, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const code = node.parentElement.closest(".invisible");
    const length = code ? 1 : [...node.data].length;
    if (left <= length) return [node, code ? (left ? node.data.length : 0) : [...node.data].slice(0, left).join("").length];
    left -= length;
  }
  return [view, view.childNodes.length];
}
const blank = (index) => /\s/u.test(letters[index] ?? " ");
function step(by, extend, byLetter) {
  if (byLetter) cursor = Math.min(letters.length, Math.max(0, cursor + by));
  else if (by > 0) { while (cursor < letters.length && blank(cursor)) cursor++; while (cursor < letters.length && !blank(cursor)) cursor++; }
  else { while (cursor > 0 && blank(cursor - 1)) cursor--; while (cursor > 0 && !blank(cursor - 1)) cursor--; }
  if (!extend) anchor = cursor;
  getSelection().setBaseAndExtent(...place(anchor), ...place(cursor));
}
view.addEventListener("pointerup", () => { const range = selected(); if (range) [anchor, cursor] = range; });
document.getElementById("span-add").addEventListener("click", add);
onKey((event) => {
  if (event.altKey) return false;
  if (event.key === "m") { add(); return true; }
  const digit = Number(event.key);
  if (event.key.length === 1 && digit >= 1 && digit <= label.options.length) { label.selectedIndex = digit - 1; return true; }
  if (document.activeElement === view && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
    step(event.key === "ArrowRight" ? 1 : -1, event.shiftKey, false);
    return true;
  }
  const letterKey = event.key.toLowerCase();
  if (document.activeElement === view && (letterKey === "h" || letterKey === "l")) {
    step(letterKey === "l" ? 1 : -1, event.shiftKey, true);
    return true;
  }
  if (event.key === "e") { view.focus(); return true; }
  return false;
});
paint();
