"use strict";

const $ = (id) => document.getElementById(id);
const sliders = new Map(); // name of an edit -> {input, sign}
let newest = 0; // number of the newest run; answers to older ones are dropped
let plain = { key: "", answer: null }; // what the picture on the left was drawn from, and the answer with it

/** An answer's JSON; throws with the server's own words. */
async function ask(path, body) {
  const options = body && {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  };
  const answer = await fetch(path, options || undefined);
  const json = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(json.error?.message || `the server answered ${answer.status}`);
  return json;
}

/** What a slider's value says: an edit that erases does so at positive strengths, to the left here. */
function words(value, effect) {
  if (value === 0) return "off";
  if (!effect) return `strength ${value}`;
  return `${value < 0 ? "erase" : "amplify"} ${Math.abs(value).toFixed(2)}`;
}

function addEdit(edit, limit) {
  const id = `edit-${edit.id}`;
  const row = document.createElement("div");
  row.className = "edit";
  const label = document.createElement("label");
  label.htmlFor = id;
  label.textContent = edit.id;
  if (edit.concept) {
    const concept = document.createElement("small");
    concept.textContent = ` (${edit.concept})`;
    label.append(concept);
  }
  const shown = document.createElement("span"); // for eyes: a screen reader has aria-valuetext
  shown.setAttribute("aria-hidden", "true");
  const input = document.createElement("input");
  Object.assign(input, { type: "range", id, min: -limit, max: limit, step: 0.25, value: 0 });
  input.setAttribute("aria-describedby", "scale-hint");
  const show = () => {
    shown.textContent = words(Number(input.value), edit.effect);
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  input.addEventListener("input", show);
  input.addEventListener("change", draw);
  show();
  row.append(label, shown, input);
  $("edits").append(row);
  sliders.set(edit.id, { input, show, sign: edit.effect === "erase" ? -1 : 1 });
}

function chosenEdits() {
  return [...sliders]
    .map(([name, { input, sign }]) => ({ name, strength: sign * Number(input.value) }))
    .filter(({ strength }) => strength !== 0);
}

function show(image, answer, caption) {
  const [width] = answer.size.split("x").map(Number);
  image.classList.toggle("small", width < 128);
  image.src = `data:image/png;base64,${answer.data[0].b64_json}`;
  image.alt = caption;
  image.hidden = false;
}

async function draw() {
  if (!$("form").reportValidity()) return;
  const run = ++newest;
  const common = {
    prompt: $("prompt").value,
    seed: Number($("seed").value),
    num_inference_steps: Number($("steps").value),
    guidance_scale: Number($("guidance").value),
  };
  const edits = chosenEdits();
  const key = JSON.stringify(common);
  $("error").hidden = true;
  $("status").textContent = "Drawing…";
  $("pictures").setAttribute("aria-busy", "true");
  const begun = performance.now();
  try {
    // Both at once: they share the server's batch.
    const path = "/v1/images/generations";
    const [before, after] = await Promise.all([
      plain.key === key ? plain.answer : ask(path, common),
      edits.length ? ask(path, { ...common, edits }) : null,
    ]);
    if (run !== newest) return;
    plain = { key, answer: before };
    show($("before"), before, `${common.prompt}, without edits`);
    const used = edits.map(({ name }) => name).join(", ") || "no edits";
    show($("after"), after || before, `${common.prompt}, with ${used}`);
    $("status").textContent = `Drawn in ${((performance.now() - begun) / 1000).toFixed(1)} s, with ${used}.`;
  } catch (error) {
    if (run !== newest) return;
    $("status").textContent = "";
    $("error").textContent = error.message;
    $("error").hidden = false;
  } finally {
    if (run === newest) $("pictures").setAttribute("aria-busy", "false");
  }
}

async function start() {
  try {
    const [limits, edits] = await Promise.all([ask("/v1/limits"), ask("/v1/edits")]);
    $("model").textContent = limits.model;
    $("prompt").maxLength = limits.max_prompt;
    Object.assign($("seed"), { max: limits.max_seed - limits.max_n });
    Object.assign($("steps"), { max: limits.max_steps, value: limits.steps });
    Object.assign($("guidance"), { max: limits.max_guidance_scale, value: limits.guidance_scale ?? 0 });
    const loaded = edits.data.filter(({ loaded }) => loaded);
    loaded.forEach((edit) => addEdit(edit, Math.min(3, limits.max_strength)));
    $("no-edits").hidden = loaded.length > 0;
    await draw();
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
$("next").addEventListener("click", () => {
  $("seed").value = Number($("seed").value) + 1;
  draw();
});
$("reset").addEventListener("click", (event) => {
  event.preventDefault(); // only the edits, not the prompt
  for (const { input, show } of sliders.values()) {
    input.value = 0;
    show();
  }
  draw();
});
start();
