import { onKey } from "../task.js";

const box = document.getElementById("text");
onKey((event) => {
  if (event.key !== "e" || event.altKey) return false;
  box.focus();
  return true;
});
if (!box.value) box.focus({ preventScroll: true });
