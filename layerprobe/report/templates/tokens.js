const tokens = read("token-data");
if (tokens) {
  const run = document.getElementById("run"), text = document.getElementById("text"), colour = document.getElementById("colour"), view = document.getElementById("view");
  const option = (select, value, words) => { const made = document.createElement("option"); made.value = value; made.textContent = words; select.append(made); };
  Object.keys(tokens.change).forEach(name => option(run, name, name));
  run.selectedIndex = run.options.length - 1;
  Object.entries(tokens.texts).forEach(([id, t]) => option(text, id, `${t.label}: ${t.tokens.slice(1, 9).join(" ")} …`));
  const colours = () => { colour.replaceChildren(); option(colour, "change", "change of each token"); tokens.latents.forEach((l, i) => { if (l.run === run.value) option(colour, i, l.name); }); };
  const line = (title, words, values, top, digits) => {
    const row = document.createElement("div"), name = document.createElement("b"), body = document.createElement("div");
    row.className = "row"; name.textContent = title;
    words.forEach((word, i) => {
      const token = document.createElement("span"), value = values[i] || 0;
      token.className = "tok"; token.tabIndex = 0; token.textContent = word; token.title = value.toFixed(digits);
      token.setAttribute("aria-label", `${word}: ${value.toFixed(digits)}`);
      token.style.backgroundColor = `rgba(var(--heat), ${0.6 * Math.max(0, Math.min(1, value / top))})`;
      body.append(token, " ");
    });
    row.append(name, body); view.append(row);
  };
  const show = () => {
    const words = tokens.texts[text.value].tokens; view.replaceChildren();
    if (colour.value === "change") {
      Object.entries(tokens.change[run.value][text.value]).sort((a, b) => a[0] - b[0]).forEach(([layer, values]) => line(`layer ${layer}`, words, values, 1, 3));
      document.getElementById("legend").textContent = "Colour: 1 – cosine of the token's base and adapted vectors, from 0 (none) to 1 and above (full).";
    } else {
      const latent = tokens.latents[Number(colour.value)], here = latent.values[text.value] || {};
      ["base", "adapted"].forEach(on => { const values = []; (here[on] || []).forEach(([i, v]) => { values[i] = v; }); line(`${on} model`, words, values, latent.top, 2); });
      document.getElementById("legend").textContent = `Colour: activation of this latent, from 0 (silent) to ${latent.top.toFixed(2)}, its largest on the texts shown.`;
    }
  };
  run.addEventListener("change", () => { colours(); show(); }); text.addEventListener("change", show); colour.addEventListener("change", show);
  colours(); show();
}
