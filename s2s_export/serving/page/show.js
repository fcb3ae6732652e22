// Puts results on the page.
const at = (id) => document.getElementById(id);

const percent = (value) => `${Math.round(100 * value)} %`;

// Beside each hypothesis its score, and how sure the model is: calibrated, where the bundle says what that means.
export function showHypotheses(outputs) {
  at("others").hidden = outputs.length < 1;
  at("others").replaceChildren(...outputs.map(({ text, score, confidence, calibrated }) => {
    const item = document.createElement("li");
    const number = document.createElement("span");
    number.className = "score";
    number.textContent = score === null ? "" : score.toFixed(4);
    if (typeof calibrated === "number") number.textContent += ` · right in ${percent(calibrated)}`;
    else if (typeof confidence === "number") number.textContent += ` · confidence ${percent(confidence)}`;
    item.append(text, number);
    return item;
  }));
}

// The best output, with a line under each word that the model was not sure of.
export function showWords({ text, words }) {
  const parts = [];
  let place = 0;
  for (const { word, probability } of words ?? []) {
    const found = text.indexOf(word, place);
    if (found < 0) continue;
    const part = document.createElement("span");
    part.className = probability < 0.5 ? "doubtful" : probability < 0.8 ? "unsure" : "";
    part.title = percent(probability);
    part.textContent = word;
    parts.push(text.slice(place, found), part);
    place = found + word.length;
  }
  at("best").replaceChildren(...parts, text.slice(place));
}

const spelled = (token) => token.replaceAll("\u2581", "\u00b7") || "\u00b7";

// Each output token is a button: pointing at it or moving to it shades the source tokens by their weight.
export function showAlignment(alignment) {
  for (const id of ["source-tokens", "target-tokens"]) {
    at(id).hidden = !alignment;
    at(id).replaceChildren();
  }
  if (!alignment) return;
  const sources = alignment.source_tokens.map((token) => {
    const part = document.createElement("span");
    part.textContent = spelled(token);
    return part;
  });
  at("source-tokens").append(...sources);
  const targets = alignment.target_tokens.map((token, row) => {
    const part = document.createElement("button");
    part.type = "button";
    part.textContent = spelled(token);
    part.setAttribute("aria-pressed", "false");
    const shade = () => {
      targets.forEach((each) => each.setAttribute("aria-pressed", String(each === part)));
      const most = Math.max(...alignment.weights[row]);
      sources.forEach((source, column) => {
        source.className = `w${Math.round((3 * alignment.weights[row][column]) / (most || 1))}`;
        source.title = alignment.weights[row][column].toFixed(3);
      });
      const best = alignment.source_tokens[alignment.weights[row].indexOf(most)];
      part.setAttribute("aria-label", `${spelled(token)}, looks at ${spelled(best)}`);
    };
    for (const name of ["mouseenter", "focus", "click"]) part.addEventListener(name, shade);
    return part;
  });
  at("target-tokens").append(...targets);
}

function entries(values) {
  return Object.entries(values).flatMap(([name, value]) => {
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  });
}

const listed = (several) => several.map(({ name }) => name).join(", ") || "not known";

export function showCard(card) {
  at("card").replaceChildren(...entries({
    "Family": `${card.family} (${card.model_type})`,
    "Precision": card.precision,
    "Backend": card.backend,
    "Built targets": card.built_targets.join(", ") || "none; the portable graphs",
    "Workers": card.workers,
    "Vocabulary": card.sizes.vocabulary_size,
    "Longest source": card.limits.max_source_length ?? "no limit",
    "Longest output": card.limits.max_target_length ?? "no limit",
    "From": listed(card.source_languages),
    "Into": listed(card.target_languages),
    "Size": `${(card.bytes / 1e6).toFixed(1)} MB`,
  }));
}

export function showFigures(figures) {
  at("figures").replaceChildren(...entries({
    "Requests": figures.requests,
    "Waiting": figures.waiting,
    "Texts": figures.sources,
    "Texts in a batch": figures.sources_per_batch ?? "–",
    "Source tokens": figures.source_tokens,
    "Output tokens": figures.target_tokens,
  }));
}
