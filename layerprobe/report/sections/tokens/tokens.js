// Examples as lines of tokens, cut from the original text, whose background shows a value of each.
const data = read("data-tokens"), texts = data.texts;
const element = (name, words, kind) => {
  const node = document.createElement(name);
  if (words !== undefined) node.textContent = words;
  if (kind) node.className = kind;
  return node;
};
const option = (select, value, words) => { const node = element("option", words); node.value = value; select.append(node); return node; };
const fill = (select, values, words) => {
  const kept = select.value; select.replaceChildren();
  values.forEach(value => option(select, String(value), words(value)));
  if (values.map(String).includes(kept)) select.value = kept;
};
// Queries match in any case, with or without accents, and in any Unicode form.
const plain = words => words.normalize("NFKD").replace(/\p{Mn}/gu, "").toLowerCase();
const queryOf = input => plain(input.value).split(/\s+/).filter(Boolean);
const label = number => texts.labels[number];
// The tokens of an example: the text of each, what precedes it, and which part it is of a character that several tokens share.
const decoded = new Map();
const exampleOf = number => {
  if (decoded.has(number)) return decoded.get(number);
  const points = [...texts.text[number]], flat = texts.tokens[number], parts = [];
  let end = 0;
  for (let i = 0; i < flat.length; i++) {
    if (typeof flat[i] === "string") { parts.push({word: flat[i], before: " ", special: true}); continue; }
    const start = end + flat[i], stop = start + flat[++i], last = parts[parts.length - 1];
    const shares = last && !last.special && last.start === start && last.stop === stop;
    const part = {word: points.slice(start, stop).join(""), start, stop, before: points.slice(end, Math.max(start, end)).join(""), run: shares ? last.run : []};
    part.run.push(part); part.place = part.run.length;
    parts.push(part); end = stop;
  }
  const made = {tokens: parts, rest: points.slice(end).join(""), text: texts.text[number], label: label(texts.label[number])};
  decoded.set(number, made);
  return made;
};
// Characters without a shape, such as those that join emojis, are named.
const visible = word => /^[\s]*$/.test(word) ? "␣" : /^[\p{C}\p{M}]+$/u.test(word) ? [...word].map(sign => `U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`).join(" ") : word;
const tokenLine = (title, number, values, top, digits, from = 0, count = Infinity) => {
  const row = element("div", undefined, "row"), body = element("div"), {tokens, rest} = exampleOf(number);
  body.dir = "auto";
  if (from) body.append("… ");
  tokens.slice(from, from + count).forEach((part, i, line) => {
    const value = values[from + i] || 0, of = part.run ? part.run.length : 1, piece = of > 1 ? ` (${part.place} of ${of} tokens)` : "";
    const word = visible(part.word);
    const token = element("span", of > 1 ? `${word} ${part.place}/${of}` : word, "tok"), name = `${word}${piece}: ${value.toFixed(digits)}`;
    // Tokens of one word are joined; text that no token covers stays plain.
    if (i && !part.before && !line[i - 1].special) token.classList.add("joined");
    else if (i || part.before.trim()) body.append(part.before.trim() ? part.before : " ");
    token.tabIndex = -1; token.title = name; token.dataset.value = `${title}, ${name}`;
    token.setAttribute("role", "img"); token.setAttribute("aria-label", name);
    token.style.setProperty("--value", top ? Math.max(0, Math.min(1, value / top)).toFixed(3) : 0);
    body.append(token);
  });
  if (from + count < tokens.length) body.append(" …");
  else if (rest.trim()) { const unread = element("span", ` ${rest.trim()}${rest.length < 200 ? "" : "…"}`, "unread"); unread.title = "not read: the text is longer than data.max_length"; body.append(unread); }
  const first = body.querySelector(".tok");
  if (first) first.tabIndex = 0;
  row.append(element("b", title), body);
  return row;
};
// One stop of the tab key per line; arrow keys move along it, and a line says the value of what has the focus.
const browse = (box, line) => {
  const say = event => { const token = event.target.closest(".tok"); if (token) line.textContent = token.dataset.value; };
  box.addEventListener("focusin", say);
  box.addEventListener("pointerover", say);
  box.addEventListener("keydown", event => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key], token = event.target.closest(".tok");
    if (!step || !token) return;
    const line = [...token.parentNode.querySelectorAll(".tok")], next = line[line.indexOf(token) + step];
    event.preventDefault();
    if (next) { token.tabIndex = -1; next.tabIndex = 0; next.focus(); }
  });
};
// The address of a latent on this page: side and training run are left out where they are those that are shown first.
const address = (run, layer, side, number) => `#latent-${layer}-${number}${run !== data.run ? `-${side}-${encodeURIComponent(run)}` : side === "adapted" ? "" : `-${side}`}`;
const link = (words, ...target) => { const anchor = element("a", words); anchor.href = address(...target); return anchor; };
// The training run that is shown first: that of the main method.
const selectMain = select => { select.value = data.run; if (select.selectedIndex < 0) select.selectedIndex = 0; };
const spread = flat => { const values = []; for (let i = 0; i < (flat || []).length; i += 2) values[flat[i]] = flat[i + 1]; return values; };
const tokens = data.tokens;
if (tokens) {
  const [input, list, run, layer, colour, filter, fixed, facts, view, value, legend] = ["example", "example-list", "run", "layer", "colour", "filter", "fixed", "example-facts", "view", "token-value", "legend"].map(id => document.getElementById(id));
  const all = tokens.shown.map((number, place) => {
    const {text, label} = exampleOf(number), name = `${label}: ${text.replace(/\s+/g, " ").trim()}`;
    return {place, number, name, found: plain(name)};
  });
  const layers = tokens.layers, predicted = tokens.predicted;
  const most = lists => lists.flat(Infinity).reduce((a, b) => Math.max(a, b), 0) / 1000;
  const mostOfAll = most(Object.values(tokens.change));
  const KINDS = [["all", "all examples"], ["gained", "wrong → right"], ["lost", "right → wrong"], ["right", "right both times"], ["wrong", "wrong both times"]];
  const kindOf = item => {
    if (!predicted || !predicted.after[run.value]) return null;
    const truth = texts.label[item.number], [before, after] = ["before", "after"].map(when => predicted[when][run.value][item.place]);
    if (before === null || after === null) return null;
    return before === truth ? (after === truth ? "right" : "lost") : after === truth ? "gained" : "wrong";
  };
  let shown = all[0], listed = all, matches = [], at = -1;
  const filters = () => {
    fill(filter, KINDS.map(([kind]) => kind), kind => `${KINDS.find(k => k[0] === kind)[1]} (${kind === "all" ? all.length : all.filter(item => kindOf(item) === kind).length})`);
    listed = filter.value === "all" ? all : all.filter(item => kindOf(item) === filter.value);
    if (listed.length && !listed.includes(shown)) shown = listed[0];
    input.value = listed.length ? shown.name : "";
  };
  // Layers and latents; a latent belongs to one layer.
  const choices = () => {
    const kept = colour.value, of = layer.value === "every" ? layers : [Number(layer.value)];
    colour.replaceChildren();
    option(colour, "change", "change of each token");
    of.forEach(l => {
      const group = element("optgroup"); group.label = `latents of layer ${l}`;
      tokens.latents.forEach((one, i) => { if (one.run === run.value && one.layer === l) option(group, String(i), one.name); });
      if (group.children.length) colour.append(group);
    });
    if ([...colour.querySelectorAll("option")].some(o => o.value === kept)) colour.value = kept;
  };
  const verdict = (number, truth) => number === null ? "unknown" : `${label(number)}${number === truth ? " (right)" : " (wrong)"}`;
  const show = () => {
    view.replaceChildren(); facts.replaceChildren(); value.textContent = ""; legend.replaceChildren();
    if (!listed.length) { legend.textContent = `No shown example is “${KINDS.find(k => k[0] === filter.value)[1]}” under ${run.value}.`; return; }
    const truth = texts.label[shown.number], scale = fixed.checked;
    const fact = (term, words) => facts.append(element("dt", term), element("dd", words));
    fact("True label", label(truth));
    if (predicted && predicted.after[run.value]) {
      fact(`Before, by ${predicted.classifier}`, verdict(predicted.before[run.value][shown.place], truth));
      fact(`After, by ${run.value}`, verdict(predicted.after[run.value][shown.place], truth));
    }
    if (colour.value === "change") {
      const changes = tokens.change[run.value][shown.place], top = scale ? mostOfAll : most(changes);
      layers.forEach((l, i) => { if (layer.value === "every" || Number(layer.value) === l) view.append(tokenLine(`layer ${l}`, shown.number, changes[i].map(v => v / 1000), top, 3)); });
      legend.textContent = top ? `Colour: 1 – cosine of the token's base and adapted vectors, from 0 (none) to ${top.toFixed(3)}, the largest ${scale ? "over all examples, layers and methods" : "of this example over all layers"}.` : `No token of this example changed under ${run.value}.`;
    } else {
      const latent = tokens.latents[Number(colour.value)], here = latent.values[shown.place] || {};
      const of = Object.values(here).flatMap(flat => flat.filter((_, i) => i % 2)), top = scale ? latent.top : of.reduce((a, b) => Math.max(a, b), 0);
      (latent.same ? ["base"] : ["base", "adapted"]).forEach(on => view.append(tokenLine(latent.same ? "base and adapted" : `${on} model`, shown.number, spread(here[on]), top, 2)));
      legend.textContent = top ? `Colour: activation of this latent at layer ${latent.layer}, from 0 (inactive) to ${top.toFixed(2)}, its largest ${scale ? "over all shown examples" : "in this example"}. ` : "This latent is inactive in this example. ";
      legend.append(link("Open this latent", latent.run, latent.layer, latent.side, latent.latent), ".");
    }
    if (exampleOf(shown.number).tokens.some(part => part.run && part.run.length > 1)) legend.append(" 1/4: a character that the tokenizer splits into several tokens, here the first of four.");
  };
  const close = () => { list.hidden = true; at = -1; input.setAttribute("aria-expanded", "false"); input.removeAttribute("aria-activedescendant"); };
  const take = item => { shown = item; input.value = item.name; close(); show(); };
  const mark = () => [...list.children].forEach((node, i) => {
    node.setAttribute("aria-selected", String(i === at));
    if (i === at) { input.setAttribute("aria-activedescendant", node.id); node.scrollIntoView({block: "nearest"}); }
  });
  const suggest = () => {
    const query = queryOf(input);
    // The name of the shown example is not a query: all examples are listed.
    matches = input.value === shown.name ? listed : listed.filter(item => query.every(word => item.found.includes(word)));
    list.replaceChildren();
    matches.forEach((item, i) => {
      const node = element("li", item.name);
      node.id = `example-${i}`; node.dir = "auto"; node.setAttribute("role", "option");
      node.addEventListener("mousedown", event => { event.preventDefault(); take(item); });
      list.append(node);
    });
    if (!matches.length) list.append(element("li", "no shown example has all of these words"));
    at = -1; list.hidden = false; input.setAttribute("aria-expanded", "true");
  };
  const settled = () => { close(); input.value = listed.length ? shown.name : ""; };
  input.addEventListener("input", suggest);
  input.addEventListener("focus", () => input.select());
  input.addEventListener("click", suggest);
  input.addEventListener("blur", settled);
  input.addEventListener("keydown", event => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) suggest();
      const n = matches.length, step = event.key === "ArrowDown" ? 1 : -1;
      if (n) { at = at < 0 && step < 0 ? n - 1 : (at + step + n) % n; mark(); }
    } else if (event.key === "Enter" && !list.hidden && matches.length) { event.preventDefault(); take(matches[Math.max(at, 0)]); }
    else if (event.key === "Escape") settled();
  });
  fill(run, Object.keys(tokens.change), name => name);
  selectMain(run);
  fill(layer, ["every", ...layers], l => l === "every" ? "every layer" : `layer ${l}`);
  filter.parentNode.hidden = !predicted;
  run.addEventListener("change", () => { filters(); choices(); show(); });
  layer.addEventListener("change", () => { choices(); show(); });
  filter.addEventListener("change", () => { filters(); show(); });
  [colour, fixed].forEach(node => node.addEventListener("change", show));
  browse(view, value);
  filters(); choices(); show();
}
