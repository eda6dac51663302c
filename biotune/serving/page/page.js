// Images go to /predict a few at a time, so that the first answers come soon. All that comes from a
// file or from the server is set as text, never as HTML.
const AT_A_TIME = 8;
const TRIES = 5;
const find = (id) => document.getElementById(id);
const percent = (p) => `${(100 * p).toFixed(1)} %`;

let limits = { max_files: AT_A_TIME, max_body: Infinity };
let waiting = Promise.resolve();
let counts = { classified: 0, unusable: 0, pending: 0 };

async function showModel() {
  const response = await fetch("model");
  if (!response.ok) throw new Error(`the server answers ${response.status}`);
  const model = await response.json();
  limits = model.limits;
  const shown = model.classes.slice(0, 4).join(", ");
  const more = model.classes.length > 4 ? ", …" : "";
  find("tagline").textContent = `Tells ${model.classes.length} classes apart: ${shown}${more}`;
  showFigures(model.metrics ?? {});
  fact("Network", model.backbone);
  fact("Input", `any size; seen at ${model.image_size} × ${model.image_size} pixels`);
  fact("Computed by", model.provider.replace("ExecutionProvider", ""));
  fact("File", `${model.file}, sha256 ${model.sha256.slice(0, 12)}…`);
  showClasses(model.classes);
  if (model.plan) showPlan(model.plan);
}

function showFigures(metrics) {
  const { accuracy, balanced_accuracy: balanced, accuracy_interval_95: interval } = metrics;
  const images = metrics.test_images;
  if (typeof accuracy !== "number") return;
  fact("Accuracy on the test images", percent(accuracy), "figure");
  if (interval && images) {
    const [low, high] = interval.map((p) => (100 * p).toFixed(1));
    fact(`95 % interval, ${images.toLocaleString("en")} images`, `${low} to ${high} %`);
  }
  if (typeof balanced === "number") fact("Balanced accuracy", percent(balanced));
}

function fact(name, value, kind = "") {
  const term = document.createElement("dt");
  const said = document.createElement("dd");
  term.textContent = name;
  said.textContent = value ?? "not said";
  said.className = kind;
  const pair = document.createElement("div");
  pair.append(term, said);
  find("facts").append(pair);
}

function showClasses(classes) {
  const details = find("classes");
  details.hidden = false;
  details.querySelector("summary").textContent = `${classes.length} classes`;
  details.querySelector("p").textContent = classes.join(", ");
}

function showPlan(plan) {
  const rows = Object.entries(plan).map(([block, multiplier]) => {
    const row = document.createElement("tr");
    const name = document.createElement("th");
    const rate = document.createElement("td");
    name.scope = "row";
    name.textContent = block;
    rate.textContent = multiplier === null ? "frozen" : `${Number(multiplier.toPrecision(3))} ×`;
    rate.className = multiplier === null ? "frozen" : "";
    row.append(name, rate);
    return row;
  });
  find("plan").tBodies[0].replaceChildren(...rows);
  find("plan").hidden = find("plan-title").hidden = false;
}

function add(chosen) {
  const images = [...chosen].map((file) => ({ file, item: newItem(file) }));
  if (!images.length) return;
  counts.pending += images.length;
  showStatus();
  find("clear").hidden = false;
  find("results").prepend(...images.map((image) => image.item));
  for (const group of groups(images)) waiting = waiting.then(() => classify(group));
}

function newItem(file) {
  const item = find("result").content.cloneNode(true).querySelector("li");
  item.querySelector(".name").textContent = file.name;
  const image = item.querySelector("img");
  const url = URL.createObjectURL(file);
  image.onload = () => {
    image.classList.toggle("tiny", image.naturalWidth < 64);
    URL.revokeObjectURL(url);
  };
  image.onerror = () => {
    image.remove(); // the server may read formats that a browser cannot show
    URL.revokeObjectURL(url);
  };
  image.src = url;
  return item;
}

function groups(images) {
  const most = Math.min(AT_A_TIME, limits.max_files);
  const found = [];
  let bytes = 0;
  for (const image of images) {
    const size = image.file.size + 1024; // with the form around it
    const last = found.at(-1);
    if (last && last.length < most && bytes + size <= limits.max_body) {
      last.push(image);
      bytes += size;
    } else {
      found.push([image]);
      bytes = size;
    }
  }
  return found;
}

async function classify(group) {
  let answers;
  try {
    answers = await ask(group.map((image) => image.file));
  } catch (error) {
    answers = group.map(() => ({ error: error.message }));
  }
  group.forEach((image, number) => show(image.item, answers[number]));
  counts.pending -= group.length;
  showStatus();
}

async function ask(files) {
  if (files.some((file) => file.size > limits.max_body)) {
    throw new Error(`larger than this server takes (${Math.floor(limits.max_body / 2 ** 20)} MiB)`);
  }
  for (let tried = 1; ; tried += 1) {
    const form = new FormData();
    for (const file of files) form.append("files", file, file.name);
    let response;
    try {
      response = await fetch("predict?top_k=3", { method: "POST", body: form });
    } catch {
      throw new Error("the server cannot be reached");
    }
    const content = await response.json().catch(() => ({}));
    if (content.images) return content.images;
    if (response.status !== 503 || tried === TRIES) {
      const { detail } = content;
      throw new Error(typeof detail === "string" ? detail : `status ${response.status}`);
    }
    const seconds = Number(response.headers.get("retry-after")) || 1;
    await new Promise((done) => setTimeout(done, 1000 * seconds));
  }
}

function show(item, answer) {
  if (!item.isConnected) return; // cleared away in the meantime
  if (answer.error) {
    counts.unusable += 1;
    item.querySelector(".top").remove();
    const error = item.querySelector(".error");
    error.hidden = false;
    error.textContent = `Cannot be used: ${answer.error}`;
    return;
  }
  counts.classified += 1;
  item.querySelector(".label").textContent = answer.label;
  item.querySelector(".probability").textContent = percent(answer.probability);
  item.querySelector(".bars").replaceChildren(...answer.classes.map(bar));
}

function bar({ label, probability }) {
  const row = document.createElement("li");
  const [name, track, value] = ["label", "of", "percent"].map((kind) => {
    const part = document.createElement("span");
    part.className = kind;
    return part;
  });
  const filled = document.createElement("span");
  filled.style.width = `${100 * probability}%`;
  track.append(filled);
  name.textContent = label;
  value.textContent = percent(probability);
  row.append(name, track, value);
  return row;
}

function showStatus() {
  const { classified, unusable, pending } = counts;
  const parts = [];
  if (pending) parts.push(`${pending} on the way`);
  if (classified) parts.push(`${classified} classified`);
  if (unusable) parts.push(`${unusable} cannot be used`);
  find("status").textContent = parts.join(", ");
}

function clear() {
  find("results").replaceChildren();
  counts = { classified: 0, unusable: 0, pending: counts.pending };
  find("clear").hidden = true;
  showStatus();
  find("files").focus();
}

const drop = find("drop");
find("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
find("clear").addEventListener("click", clear);
// On the whole page: an image dropped beside the box would replace the page in the browser.
addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  add(event.dataTransfer.files);
});
addEventListener("paste", (event) => add(event.clipboardData.files));

showModel().catch((error) => fact("The model cannot be shown", error.message));
