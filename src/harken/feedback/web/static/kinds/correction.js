import { written } from "../task.js";

// Live difference by words: longest common subsequence, for texts that are not too long for it.
const box = document.getElementById("text");
const view = document.getElementById("diff");
const MAX_WORDS = 1500;
const words = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];
const before = words(JSON.parse(box.dataset.before).replace(/\r\n?/g, "\n"));

function pieces(a, b) {
  let start = 0, end = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  while (end < a.length - start && end < b.length - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  const x = a.slice(start, a.length - end), y = b.slice(start, b.length - end);
  const found = [["", a.slice(0, start)]];
  if (x.length > MAX_WORDS || y.length > MAX_WORDS) found.push(["del", x], ["ins", y]);
  else {
    const table = Array.from({ length: x.length + 1 }, () => new Uint16Array(y.length + 1));
    for (let i = x.length - 1; i >= 0; i--) for (let j = y.length - 1; j >= 0; j--)
      table[i][j] = x[i] === y[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
    for (let i = 0, j = 0; i < x.length || j < y.length;) {
      if (i < x.length && j < y.length && x[i] === y[j]) { found.push(["", [x[i]]]); i++; j++; }
      else if (j >= y.length || (i < x.length && table[i + 1][j] >= table[i][j + 1])) { found.push(["del", [x[i]]]); i++; }
      else { found.push(["ins", [y[j]]]); j++; }
    }
  }
  found.push(["", a.slice(a.length - end)]);
  return found;
}
function show() {
  const found = pieces(before, words(box.value));
  view.replaceChildren();
  let open = null, kind = null;
  for (const [name, list] of found) {
    if (!list.length) continue;
    if (name !== kind || !open) { open = document.createElement(name || "span"); view.append(open); kind = name; }
    open.append(list.join(""));
  }
  view.hidden = !found.some(([name, list]) => name && list.length);
}
box.addEventListener("input", show);
written(box);
show();
