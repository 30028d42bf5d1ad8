import { written } from "../task.js";

const box = document.getElementById("text");
written(box);
if (!box.value) box.focus({ preventScroll: true });
