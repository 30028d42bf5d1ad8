import { onKey, changed } from "../task.js";

const choices = [...document.querySelectorAll("input[name=choice]")];

function paint() {
  const chosen = choices.find((choice) => choice.checked)?.value ?? "";
  for (const side of document.querySelectorAll(".pair .completion")) {
    side.classList.toggle("chosen", chosen.startsWith(side.dataset.place));
  }
}
function choose(index) {
  choices[index].checked = true;
  choices[index].focus();
  paint();
  changed();
}
onKey((event) => {
  if (event.altKey) return false;
  const digit = Number(event.key);
  if (event.key.length === 1 && digit >= 1 && digit <= choices.length) { choose(digit - 1); return true; }
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    const now = choices.findIndex((choice) => choice.checked);
    const step = event.key === "ArrowRight" ? 1 : -1;
    const middle = Math.floor(choices.length / 2);
    choose(now < 0 ? middle : Math.min(choices.length - 1, Math.max(0, now + step)));
    return true;
  }
  return false;
});
for (const choice of choices) choice.addEventListener("change", paint);
paint();
