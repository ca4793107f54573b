// Words of a text with a value each, drawn as tokens whose background tells the value.
const element = (name, words, kind) => {
  const made = document.createElement(name);
  if (words !== undefined) made.textContent = words;
  if (kind) made.className = kind;
  return made;
};
const option = (select, value, words) => { const made = element("option", words); made.value = value; select.append(made); };
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
// The method to begin with: the deepest that was asked about, never the control.
const foremost = select => { const named = [...select.options].map(o => !o.value.startsWith("shuffled-labels")); select.selectedIndex = Math.max(0, named.lastIndexOf(true)); };
const spread = pairs => { const values = []; (pairs || []).forEach(([i, v]) => { values[i] = v; }); return values; };
const tokens = read("data-tokens").tokens;
if (tokens) {
  const [text, list, run, slider, colour, every, view, legend] = ["text", "text-list", "run", "layer", "colour", "every", "view", "legend"].map(id => document.getElementById(id));
  const all = Object.entries(tokens.texts).map(([id, t]) => ({id, name: `${t.label}: ${t.tokens.slice(1, -1).join(" ").replaceAll(" ##", "")}`}));
  const layers = tokens.layers;
  // One scale for all methods and layers, so that they can be compared.
  const most = Object.values(tokens.change).flatMap(Object.values).flatMap(Object.values).flat().reduce((a, b) => Math.max(a, b), 0);
  let shown = all[0].id, found = [], at = -1;
  Object.keys(tokens.change).forEach(name => option(run, name, name));
  foremost(run);
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
    const words = tokens.texts[shown].tokens, layer = layers[Number(slider.value)];
    view.replaceChildren();
    if (colour.value === "change") {
      const changes = tokens.change[run.value][shown] || {};
      (every.checked ? layers : [layer]).forEach(l => view.append(tokenLine(`layer ${l}`, words, changes[l] || [], most, 3)));
      legend.textContent = `Colour: 1 – cosine of the token's base and adapted vectors, from 0 (none) to ${most.toFixed(2)}, the largest in any shown text, layer and method. Label: ${tokens.texts[shown].label}.`;
    } else {
      const latent = tokens.latents[Number(colour.value)], here = latent.values[shown] || {};
      (latent.same ? ["base"] : ["base", "adapted"]).forEach(on => view.append(tokenLine(latent.same ? "base and adapted" : `${on} model`, words, spread(here[on]), latent.top, 2)));
      legend.textContent = `Colour: activation of this latent at layer ${layer}, from 0 (silent) to ${latent.top.toFixed(2)}, its largest on the texts shown. Label: ${tokens.texts[shown].label}.`;
    }
  };
  const close = () => { list.hidden = true; at = -1; text.setAttribute("aria-expanded", "false"); text.removeAttribute("aria-activedescendant"); };
  const take = item => { shown = item.id; text.value = item.name; close(); show(); };
  const mark = () => [...list.children].forEach((node, i) => {
    node.setAttribute("aria-selected", String(i === at));
    if (i === at) { text.setAttribute("aria-activedescendant", node.id); node.scrollIntoView({block: "nearest"}); }
  });
  const suggest = () => {
    const asked = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = all.filter(item => asked.every(word => item.name.toLowerCase().includes(word)));
    if (!found.length || text.value === (tokens.texts[shown] && all.find(i => i.id === shown).name)) found = found.length ? all : [];
    list.replaceChildren();
    found.forEach((item, i) => {
      const node = element("li", item.name);
      node.id = `text-${i}`; node.setAttribute("role", "option");
      node.addEventListener("mousedown", event => { event.preventDefault(); take(item); });
      list.append(node);
    });
    if (!found.length) list.append(element("li", "no shown text has all of these words"));
    at = -1; list.hidden = false; text.setAttribute("aria-expanded", "true");
  };
  text.addEventListener("input", suggest);
  text.addEventListener("focus", () => text.select());
  text.addEventListener("click", suggest);
  text.addEventListener("blur", () => { close(); text.value = all.find(item => item.id === shown).name; });
  text.addEventListener("keydown", event => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) suggest();
      const n = found.length, step = event.key === "ArrowDown" ? 1 : -1;
      if (n) { at = at < 0 && step < 0 ? n - 1 : (at + step + n) % n; mark(); }
    } else if (event.key === "Enter" && !list.hidden && found.length) { event.preventDefault(); take(found[Math.max(at, 0)]); }
    else if (event.key === "Escape") { close(); text.value = all.find(item => item.id === shown).name; }
  });
  [run, slider].forEach(node => node.addEventListener("input", () => { colours(); show(); }));
  colour.addEventListener("change", () => { colours(); show(); });
  every.addEventListener("change", show);
  colours(); take(all[0]);
}
