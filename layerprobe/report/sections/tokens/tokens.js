// An example as a line of tokens whose background shows a value of each.
const element = (name, words, kind) => {
  const node = document.createElement(name);
  if (words !== undefined) node.textContent = words;
  if (kind) node.className = kind;
  return node;
};
const option = (select, value, words) => { const node = element("option", words); node.value = value; select.append(node); };
const tokenLine = (title, words, values, top, digits) => {
  const row = element("div", undefined, "row"), body = element("div");
  words.forEach((word, i) => {
    const value = values[i] || 0, token = element("span", word, "tok");
    if (value) token.tabIndex = 0;
    token.title = value.toFixed(digits);
    token.setAttribute("aria-label", `${word}: ${value.toFixed(digits)}`);
    token.style.setProperty("--value", top ? Math.max(0, Math.min(1, value / top)).toFixed(3) : 0);
    body.append(token, " ");
  });
  row.append(element("b", title), body);
  return row;
};
// The training run that is shown first: that of the main method.
const selectMain = select => { select.value = read("data-tokens").run; if (select.selectedIndex < 0) select.selectedIndex = 0; };
const spread = pairs => { const values = []; (pairs || []).forEach(([i, v]) => { values[i] = v; }); return values; };
const tokens = read("data-tokens").tokens;
if (tokens) {
  const [input, list, run, slider, colour, every, view, legend] = ["example", "example-list", "run", "layer", "colour", "every", "view", "legend"].map(id => document.getElementById(id));
  const all = Object.entries(tokens.examples).map(([id, t]) => ({id, name: `${t.label}: ${t.tokens.slice(1, -1).join(" ").replaceAll(" ##", "")}`}));
  const layers = tokens.layers;
  // One scale for all methods and layers, so that they can be compared.
  const most = Object.values(tokens.change).flatMap(Object.values).flatMap(Object.values).flat().reduce((a, b) => Math.max(a, b), 0);
  let shown = all[0].id, matches = [], at = -1;
  Object.keys(tokens.change).forEach(name => option(run, name, name));
  selectMain(run);
  slider.min = 0; slider.max = layers.length - 1; slider.value = layers.length - 1;
  const colours = () => {
    const kept = colour.value, layer = layers[Number(slider.value)];
    colour.replaceChildren();
    option(colour, "change", "change of each token");
    tokens.latents.forEach((l, i) => { if (l.run === run.value && l.layer === layer) option(colour, String(i), l.name); });
    if ([...colour.options].some(o => o.value === kept)) colour.value = kept;
    every.disabled = colour.value !== "change";
    document.getElementById("layer-name").textContent = layer;
    slider.setAttribute("aria-valuetext", `layer ${layer}`);
  };
  const show = () => {
    const words = tokens.examples[shown].tokens, layer = layers[Number(slider.value)];
    view.replaceChildren();
    if (colour.value === "change") {
      const changes = tokens.change[run.value][shown] || {};
      (every.checked ? layers : [layer]).forEach(l => view.append(tokenLine(`layer ${l}`, words, changes[l] || [], most, 3)));
      legend.textContent = `Colour: 1 – cosine of the token's base and adapted vectors, from 0 (none) to ${most.toFixed(2)}, the largest over the examples shown, layers and methods. Label: ${tokens.examples[shown].label}.`;
    } else {
      const latent = tokens.latents[Number(colour.value)], here = latent.values[shown] || {};
      (latent.same ? ["base"] : ["base", "adapted"]).forEach(on => view.append(tokenLine(latent.same ? "base and adapted" : `${on} model`, words, spread(here[on]), latent.top, 2)));
      legend.textContent = `Colour: activation of this latent at layer ${layer}, from 0 (inactive) to ${latent.top.toFixed(2)}, its largest on the examples shown. Label: ${tokens.examples[shown].label}.`;
    }
  };
  const close = () => { list.hidden = true; at = -1; input.setAttribute("aria-expanded", "false"); input.removeAttribute("aria-activedescendant"); };
  const take = item => { shown = item.id; input.value = item.name; close(); show(); };
  const mark = () => [...list.children].forEach((node, i) => {
    node.setAttribute("aria-selected", String(i === at));
    if (i === at) { input.setAttribute("aria-activedescendant", node.id); node.scrollIntoView({block: "nearest"}); }
  });
  const suggest = () => {
    const query = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    matches = all.filter(item => query.every(word => item.name.toLowerCase().includes(word)));
    // The name of the shown example is not a query: all examples are listed.
    if (matches.length && input.value === all.find(item => item.id === shown).name) matches = all;
    list.replaceChildren();
    matches.forEach((item, i) => {
      const node = element("li", item.name);
      node.id = `example-${i}`; node.setAttribute("role", "option");
      node.addEventListener("mousedown", event => { event.preventDefault(); take(item); });
      list.append(node);
    });
    if (!matches.length) list.append(element("li", "no shown example has all of these words"));
    at = -1; list.hidden = false; input.setAttribute("aria-expanded", "true");
  };
  input.addEventListener("input", suggest);
  input.addEventListener("focus", () => input.select());
  input.addEventListener("click", suggest);
  input.addEventListener("blur", () => { close(); input.value = all.find(item => item.id === shown).name; });
  input.addEventListener("keydown", event => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) suggest();
      const n = matches.length, step = event.key === "ArrowDown" ? 1 : -1;
      if (n) { at = at < 0 && step < 0 ? n - 1 : (at + step + n) % n; mark(); }
    } else if (event.key === "Enter" && !list.hidden && matches.length) { event.preventDefault(); take(matches[Math.max(at, 0)]); }
    else if (event.key === "Escape") { close(); input.value = all.find(item => item.id === shown).name; }
  });
  [run, slider].forEach(node => node.addEventListener("input", () => { colours(); show(); }));
  colour.addEventListener("change", () => { colours(); show(); });
  every.addEventListener("change", show);
  colours(); take(all[0]);
}
