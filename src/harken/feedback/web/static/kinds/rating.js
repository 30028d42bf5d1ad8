import { onKey, changed } from "../task.js";

const axes = [...document.querySelectorAll(".axis")];
let current = Math.max(0, axes.findIndex((axis) => !axis.querySelector(":checked")));

function mark(index, scroll = true) {
  current = Math.min(axes.length - 1, Math.max(0, index));
  axes.forEach((axis, place) => axis.classList.toggle("current", place === current));
  if (scroll) axes[current].scrollIntoView({ block: "nearest" });
}
function step(by) {
  mark(current + by);
  (axes[current].querySelector(":checked") ?? axes[current].querySelector("input")).focus();
}
onKey((event) => {
  if (event.altKey) return false;
  if (event.key === "ArrowDown") { step(1); return true; }
  if (event.key === "ArrowUp") { step(-1); return true; }
  const input = /^\d$/.test(event.key) && [...axes[current].querySelectorAll("input")].find((one) => one.value === event.key);
  if (!input) return false;
  input.checked = true;
  input.focus();
  changed();
  if (current < axes.length - 1) mark(current + 1);
  return true;
});
axes.forEach((axis, index) => axis.addEventListener("focusin", () => mark(index)));
// The page opens at its top: the prompt is read before anything is rated.
mark(current, false);
