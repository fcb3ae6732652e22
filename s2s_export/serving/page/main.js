// The page: what is typed is decoded as it is typed. First the best output streams in, then all hypotheses and the
// alignment of the best one replace it.
import { describe, events, generate } from "./api.js";
import { showAlignment, showCard, showFigures, showHypotheses, showWords } from "./show.js";

const at = (id) => document.getElementById(id);
const PAUSE = 250; // ms without a key before a request
const FIGURES = 3000; // ms between two looks at the server's figures
let cards = [];
let current = new AbortController();
let timer;

function line() {
  const text = at("source").value.trim();
  const fields = { model: at("model").value, text };
  if (at("target").value) fields.target_lang = at("target").value;
  for (const name of ["num_beams", "num_return_sequences", "length_penalty"]) {
    if (at(name).value !== "") fields[name] = Number(at(name).value);
  }
  fields.num_return_sequences = Math.min(fields.num_return_sequences ?? 1, fields.num_beams ?? 1);
  return fields;
}

function fail(message) {
  at("error").textContent = message;
  at("error").hidden = !message;
}

async function run() {
  current.abort();
  current = new AbortController();
  const { signal } = current;
  fail("");
  showAlignment(null);
  showHypotheses([]);
  at("best").textContent = "";
  const fields = line();
  if (!fields.text) return;
  at("best").classList.add("busy");
  try {
    for await (const event of events({ ...fields, num_return_sequences: 1 }, at("key").value, signal)) {
      if (event.text !== undefined) at("best").textContent += event.text;
      if (event.outputs) at("best").textContent = event.outputs[0].text;
    }
    const card = cards.find((each) => each.name === fields.model);
    const wanted = { ...fields, alignments: card.has_alignments, confidence: true };
    const result = await generate(wanted, at("key").value, signal);
    showHypotheses(result.outputs);
    showWords(result.outputs[0]);
    showAlignment(result.outputs[0].alignment ?? null);
  } catch (error) {
    if (error.name !== "AbortError") fail(error.message);
  } finally {
    if (!signal.aborted) at("best").classList.remove("busy");
  }
}

function later() {
  clearTimeout(timer);
  timer = setTimeout(run, PAUSE);
}

function choose() {
  const card = cards.find((each) => each.name === at("model").value);
  at("target").replaceChildren(...card.target_languages.map(({ code, name }) => new Option(name, code)));
  at("into").hidden = card.target_languages.length < 2;
  if (card.target_languages.length < 2) at("target").replaceChildren();
  showCard(card);
  later();
}

async function start() {
  try {
    const { models, figures } = await describe(at("key").value);
    cards = models.filter((each) => each.has_text);
    if (!cards.length) throw new Error("No model of this server reads text.");
    at("model").replaceChildren(...cards.map(({ name }) => new Option(name)));
    showFigures(figures);
    choose();
    fail("");
  } catch (error) {
    fail(error.message);
  }
}

async function watch() {
  try {
    if (!document.hidden && cards.length) showFigures((await describe(at("key").value)).figures);
  } catch {
    // The next look may succeed.
  }
  setTimeout(watch, FIGURES);
}

at("source").addEventListener("input", later);
at("model").addEventListener("change", choose);
at("target").addEventListener("change", run);
at("key").addEventListener("change", start);
for (const name of ["num_beams", "num_return_sequences", "length_penalty"]) at(name).addEventListener("change", later);
const asked = new URLSearchParams(location.search).get("text");
if (asked) at("source").value = asked;
start();
setTimeout(watch, FIGURES);
