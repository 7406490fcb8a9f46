"use strict";
const SECONDS = 60;
const byId = (id) => document.getElementById(id);
const shown = { models: "", picture: null, request: 0 };

function headers() {
  const key = byId("key").value;
  return key ? { "X-API-Key": key } : {};
}

function say(text, kind = "") {
  const message = byId("message");
  message.textContent = text;
  message.className = kind;
  message.hidden = !text;
}

async function answerOf(response) {
  let body;
  try {
    body = await response.json();
  } catch {
    throw new Error(`the server answered ${response.status}`);
  }
  if (response.status === 401) byId("keyrow").hidden = false;
  if (!response.ok) throw new Error(body.error || `the server answered ${response.status}`);
  return body;
}

async function classify(file) {
  const request = ++shown.request;
  if (shown.picture) URL.revokeObjectURL(shown.picture);
  shown.picture = URL.createObjectURL(file);
  byId("picture").src = shown.picture;
  byId("picture").hidden = false;
  byId("hint").hidden = true;
  say("");
  const query = new URLSearchParams({ top: 5 });
  if (byId("model").value) query.set("model", byId("model").value);
  const started = performance.now();
  try {
    const response = await fetch(`v1/classify?${query}`, {
      method: "POST",
      headers: { ...headers(), "Content-Type": "application/octet-stream" },
      body: file,
    });
    const answer = await answerOf(response);
    if (request !== shown.request) return; // a newer picture is on its way
    showClasses(answer, performance.now() - started);
  } catch (error) {
    if (request !== shown.request) return;
    byId("classes").replaceChildren();
    byId("took").textContent = "";
    say(error.message);
  }
}

function showClasses(answer, took) {
  const items = answer.classes.map((found) => {
    const item = document.createElement("li");
    const bar = document.createElement("span");
    const label = document.createElement("span");
    const percent = document.createElement("span");
    bar.className = "bar";
    bar.style.width = `${100 * found.probability}%`;
    label.textContent = found.label || `class ${found.index}`;
    percent.className = "percent";
    percent.textContent = `${(100 * found.probability).toFixed(1)} %`;
    item.append(bar, label, percent);
    return item;
  });
  byId("classes").replaceChildren(...items);
  byId("took").textContent = `${answer.ms.toFixed(1)} ms on the server, ${took.toFixed(1)} ms in all`;
  if (answer.random_weights) say("This model has random weights: its classes mean nothing.", "note");
}

function showModels(models) {
  const names = models.map((model) => model.name);
  if (JSON.stringify(names) === shown.models) return;
  shown.models = JSON.stringify(names);
  const chosen = byId("model").value;
  byId("model").replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.includes(chosen)) byId("model").value = chosen;
}

function element(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function niceLimit(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 0.1)));
  return [1, 2, 5, 10].map((factor) => factor * power).find((limit) => limit >= value) || 10 * power;
}

function drawChart(points) {
  const box = { left: 60, right: 745, top: 12, bottom: 190 };
  const limit = niceLimit(Math.max(1, ...points.map((point) => point.p99_ms)));
  const most = niceLimit(Math.max(1, ...points.map((point) => point.requests)));
  const x = (age) => box.right - (age / SECONDS) * (box.right - box.left);
  const y = (value, top) => box.bottom - (value / top) * (box.bottom - box.top);
  const made = [];
  for (const point of points) {
    const top = y(point.requests, most);
    made.push(element("rect", { class: "rate", x: x(point.age) - 5, y: top, width: 10, height: box.bottom - top }));
  }
  for (const part of [0, 0.5, 1]) {
    const at = y(part, 1);
    made.push(element("line", { class: "grid", x1: box.left, x2: box.right, y1: at, y2: at }));
    made.push(element("text", { x: box.left - 8, y: at + 4, "text-anchor": "end" }, `${+(part * limit).toPrecision(2)} ms`));
    made.push(element("text", { x: box.right + 8, y: at + 4 }, `${+(part * most).toPrecision(2)}/s`));
  }
  for (const age of [60, 45, 30, 15, 0]) {
    made.push(element("text", { x: x(age), y: 210, "text-anchor": "middle" }, age ? `${age} s ago` : "now"));
  }
  for (const [name, key, dot] of [["p99", "p99_ms", "dot99"], ["p50", "p50_ms", "dot50"]]) {
    const line = points.map((point) => `${x(point.age)},${y(point[key], limit)}`).join(" ");
    if (points.length > 1) made.push(element("polyline", { class: `line ${name}`, points: line }));
    for (const point of points) made.push(element("circle", { class: dot, cx: x(point.age), cy: y(point[key], limit), r: 2.5 }));
  }
  byId("chart").replaceChildren(...made);
  const last = points.at(-1);
  byId("now").textContent = last ? `${last.p50_ms.toFixed(1)} ms median, ${last.p99_ms.toFixed(1)} ms 99th percentile` : "no request yet";
}

async function refresh() {
  const state = byId("state");
  try {
    const body = await answerOf(await fetch("v1/recent", { headers: headers() }));
    const ready = body.models.length > 0 && body.models.every((model) => model.ready);
    state.textContent = ready ? "ready" : "not ready";
    state.className = ready ? "ready" : "bad";
    showModels(body.models);
    drawChart(body.points);
  } catch (error) {
    state.textContent = error instanceof TypeError ? "no connection" : error.message;
    state.className = "bad";
  }
}

function firstPicture(list) {
  return [...list].find((file) => file.type.startsWith("image/"));
}

const drop = byId("drop");
drop.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  const file = firstPicture(event.dataTransfer.files);
  if (file) classify(file);
  else say("that is no picture");
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("paste", (event) => {
  const file = firstPicture(event.clipboardData.files);
  if (file) classify(file);
});
drop.addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") byId("file").click();
});
byId("file").addEventListener("change", (event) => {
  if (event.target.files.length) classify(event.target.files[0]);
  event.target.value = "";
});
byId("key").addEventListener("change", refresh);
drawChart([]);
refresh();
setInterval(refresh, 1000);
