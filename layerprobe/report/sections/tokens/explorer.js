// The table of latents, and the page of one: #latent-<layer>-<number>[-<side>[-<training run>]] opens it.
const catalogue = data.explorer;
if (catalogue) {
  const ROWS = 25, WINDOW = 40, COLUMNS = [
    ["latent", "latent", 0], ["kind", "kind"], ["density", "active on", "%"], ["tokens", "top tokens"], ["label", "label"], ["auroc", "AUROC", 2],
    ["property", "property"], ["property_effect", "its effect", 2], ["delta", "Delta", 2], ["nearest", "nearest", 0],
    ["nearest_cosine", "its cosine", 2], ["unmatched", "unmatched"]];
  const KINDS = ["every kind", "task", "both", "general", "unexplained", "unmatched", "with histogram"];
  const at = id => document.getElementById(`ex-${id}`);
  const [run, layer, side, kind, search, within, note, table, where, back, next, page] = ["run", "layer", "side", "kind", "search", "in", "note", "table", "where", "back", "next", "latent"].map(at);
  const name = number => number === null || number === undefined ? "" : catalogue.names[number];
  const unique = list => [...new Set(list)];
  const groupOf = (r, l, s) => catalogue.groups.find(g => g.run === r && g.layer === Number(l) && (g.side === s || g.same));
  // Top tokens and examples of a latent, and whether it can be opened.
  const listed = (of, number) => (of.listing === null ? {} : catalogue.listings[of.listing])[number] || [[], []];
  const opens = (of, number) => of.pages[number] !== undefined || (of.listing !== null && catalogue.listings[of.listing][number] !== undefined);
  const topTokens = (number, most) => listed(group, number)[0].filter((_, i) => i % 2 === 0).slice(0, most).map(name);
  const textsOf = number => [...listed(group, number)[1].map(peak => peak[0]), ...(group.pages[number] ? group.pages[number].examples.map(item => item[2]) : [])];
  const folded = new Map();
  const foldedText = number => { if (!folded.has(number)) folded.set(number, plain(texts.text[number])); return folded.get(number); };
  let group, order = [], first = 0, by = null, down = true, live = [];
  const value = (column, i) => {
    if (column === "tokens") return topTokens(group.columns.latent[i], 3).join(", ") || null;
    const values = group.columns[column];
    if (!values) return null;
    if (column === "property") return `${name(values[i])}${group.columns.property_value ? ` ${name(group.columns.property_value[i])}` : ""}`.trim();
    return ["kind", "label"].includes(column) ? name(values[i]) : values[i];
  };
  // An AUROC below one half is as strong an association as one equally far above it.
  const weight = (column, i) => { const v = value(column, i); return column === "auroc" && v !== null ? Math.abs(v - 0.5) : v; };
  const words = (column, i, digits) => {
    const v = value(column, i);
    if (v === null || v === undefined) return "–";
    if (column === "unmatched") return v ? (group.side === "base" ? "lost" : "new") : "";
    return typeof v !== "number" || digits === undefined ? String(v) : digits === "%" ? `${(100 * v).toPrecision(2)}%` : digits ? v.toFixed(digits) : String(v);
  };
  const choose = () => {
    const query = queryOf(search), n = group.columns.latent.length, all = line => { const there = plain(line); return query.every(word => there.includes(word)); };
    const matches = {
      any: i => all(`${group.columns.latent[i]} ${value("kind", i)} ${value("label", i) || ""} ${value("property", i) || ""} ${topTokens(group.columns.latent[i]).join(" ")}`),
      token: i => all(topTokens(group.columns.latent[i]).join(" ")),
      label: i => all(value("label", i) || ""),
      text: i => textsOf(group.columns.latent[i]).some(number => { const there = foldedText(number); return query.every(word => there.includes(word)); }),
    }[within.value];
    order = [];
    for (let i = 0; i < n; i++) {
      const k = value("kind", i), wanted = kind.value === "every kind" || kind.value === k || (kind.value === "unmatched" && value("unmatched", i)) || (kind.value === "with histogram" && group.pages[group.columns.latent[i]]);
      if (wanted && (!query.length || matches(i))) order.push(i);
    }
    if (by) order.sort((a, b) => {
      const x = weight(by, a), y = weight(by, b), none = v => v === null || v === undefined || v === "";
      if (none(x) || none(y)) return none(x) - none(y);
      const sense = typeof x === "string" ? x.localeCompare(y) : x - y;
      return down ? -sense : sense;
    });
    first = 0;
    draw();
  };
  const draw = () => {
    const body = table.tBodies[0]; body.replaceChildren();
    order.slice(first, first + ROWS).forEach(i => {
      const row = element("tr"), number = group.columns.latent[i];
      COLUMNS.forEach(([column, , digits]) => {
        const cell = element("td");
        if (column === "latent" && opens(group, number)) {
          const open = element("button", String(number), "open"); open.type = "button";
          open.setAttribute("aria-label", `Open latent ${number}`);
          open.addEventListener("click", () => go(group.run, group.layer, group.side, number));
          cell.append(open);
        } else cell.textContent = words(column, i, digits);
        row.append(cell);
      });
      body.append(row);
    });
    where.textContent = order.length ? `${first + 1} to ${Math.min(first + ROWS, order.length)} of ${order.length}` : "no latents match";
    back.disabled = first === 0; next.disabled = first + ROWS >= order.length;
  };
  const heads = () => {
    const row = element("tr");
    COLUMNS.forEach(([column, title]) => {
      const cell = element("th"), button = element("button", title, "sort");
      button.type = "button"; cell.scope = "col";
      cell.setAttribute("aria-sort", by === column ? (down ? "descending" : "ascending") : "none");
      if (by === column) button.append(element("span", down ? " ▾" : " ▴"));
      button.addEventListener("click", () => {
        down = by === column ? !down : !["latent", "kind", "tokens", "label", "property", "nearest"].includes(column);
        by = column; heads(); choose(); table.tHead.querySelectorAll("button")[COLUMNS.findIndex(c => c[0] === column)].focus();
      });
      cell.append(button); row.append(cell);
    });
    table.tHead.replaceChildren(row);
  };
  const selected = () => {
    const here = catalogue.groups.filter(g => g.run === run.value);
    fill(layer, unique(here.map(g => g.layer)), l => `layer ${l}`);
    const sides = here.filter(g => g.layer === Number(layer.value));
    fill(side, sides.map(g => g.side), s => sides[0].same ? "base and adapted, which coincide" : s);
    group = groupOf(run.value, layer.value, side.value);
    const pages = Object.keys(group.pages).length, open = group.columns.latent.filter(number => opens(group, number)).length;
    note.textContent = `${group.latents} latents, ${group.dead} of them dead on these examples and left out${group.left_out ? `; ${group.left_out} of the least associated and least active are left out, too, to keep this page small` : ""}. ${open === group.columns.latent.length ? "Every one" : open} can be opened; ${pages}, chosen by task effect, by having no match, and by activity, with histogram. All of them are in tables/latents.parquet of the run folder.`;
    choose();
  };
  const bars = page => {
    const names = {base: "on base", adapted: "on adapted", match: "its match on the other side"};
    const colours = {base: "#0072B2", adapted: "#D55E00", match: "#8C8C8C"};
    const data = Object.keys(page.bars).map(on => {
      const counts = page.bars[on].slice(1), width = page.top / counts.length;
      return {type: "scatter", mode: "lines", line: {shape: "hvh", color: colours[on], dash: on === "match" ? "dot" : "solid"}, name: group.same ? "on both sides" : names[on],
        x: counts.map((_, i) => (i + 0.5) * width), y: counts.map(c => c || null), connectgaps: false};
    });
    return {data, layout: figureLayout("activation", "tokens (log scale)", {type: "log", dtick: 1})};
  };
  const figureLayout = (x, y, more) => {
    const axis = {gridcolor: "rgba(128,128,128,.25)", zerolinecolor: "rgba(128,128,128,.4)", automargin: true};
    return {height: 300, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: {l: 60, r: 10, t: 40, b: 50}, font: {family: "system-ui, sans-serif", size: 13},
      legend: {orientation: "h", x: 0, y: 1.02, yanchor: "bottom"}, xaxis: {...axis, title: {text: x}}, yaxis: {...axis, title: {text: y}, ...more}};
  };
  const classes = opened => {
    const colours = {base: "#0072B2", adapted: "#D55E00"}, data = [];
    ["base", "adapted"].filter(on => opened.classes[on]).forEach(on => {
      const rows = opened.classes[on];
      data.push({type: "scatter", mode: "markers", name: group.same ? "both sides" : `on ${on}`, x: rows.map(r => literal(name(r[0]))), y: rows.map(r => r[1]), offsetgroup: on,
        marker: {size: 10, color: colours[on], symbol: on === "base" ? "circle" : "square"}, customdata: rows.map(r => [r[4], r[5], literal(name(r[0]))]),
        hovertemplate: "%{customdata[2]}: %{y:.3f}; active in %{customdata[0]:.0%} of %{customdata[1]} examples<extra></extra>",
        error_y: {type: "data", symmetric: false, array: rows.map(r => r[3] - r[1]), arrayminus: rows.map(r => r[1] - r[2])}});
    });
    const figure = {data, layout: figureLayout("label", "mean activation", {rangemode: "tozero"})};
    figure.layout.scattermode = "group"; figure.layout.xaxis.type = "category";
    // Long labels would leave no room for the figure; the text shown on hovering has all of them.
    const labels = unique(Object.values(opened.classes).flat().map(row => name(row[0]))), most = Math.max(12, Math.floor((page.clientWidth || 900) / 10 / labels.length));
    figure.layout.xaxis.tickvals = labels.map(literal);
    figure.layout.xaxis.ticktext = labels.map(words => literal([...words].length > most ? `${[...words].slice(0, most).join("")}…` : words));
    return figure;
  };
  const plot = (figure, number, kind, label, caption) => {
    const box = element("figure"), node = element("div", undefined, "plot");
    node.dataset.figure = `latent-${group.layer}-${group.side}-${number}-${kind}`;
    node.setAttribute("role", "group"); node.setAttribute("aria-label", label);
    box.append(node, element("figcaption", caption)); page.append(box);
    place(node, figure);
  };
  const go = (...target) => { if (location.hash === address(...target)) open(); else location.hash = address(...target); };
  const clear = () => {
    live.forEach(node => { Plotly.purge(node); plots.splice(plots.indexOf(node), 1); });
    live = []; page.replaceChildren(); at("value").textContent = "";
  };
  const facts = (i, number) => {
    const list = element("p"), other = group.side === "base" ? "adapted" : "base", parts = [`It is active on ${words("density", i, "%")} of tokens`];
    const label = value("label", i), property = value("property", i);
    if (label) parts.push(`${value("auroc", i) < 0.5 ? "is less active for" : "is more active for"} ${label} than for the rest (AUROC ${words("auroc", i, 2)})`);
    if (property) parts.push(`is most strongly associated with ${property} (effect ${words("property_effect", i, 2)})`);
    list.append(`${parts.join("; ")}.`);
    const partner = value("partner", i), nearest = value("nearest", i);
    if (group.same) list.append(" Base and adapted are identical here.");
    else {
      const there = groupOf(group.run, group.layer, other), named = n => there && opens(there, n) ? link(`latent ${n}`, group.run, group.layer, other, n) : `latent ${n}`;
      if (partner !== null && partner !== undefined) list.append(` Its match in the ${other} dictionary is `, named(partner), ` (cosine ${words("cosine", i, 2)}).`);
      else list.append(` It has no match in the ${other} dictionary.`);
      if (nearest !== null && nearest !== undefined && nearest !== partner) list.append(" Nearest is ", named(nearest), ` (cosine ${words("nearest_cosine", i, 2)}).`);
      if (value("unmatched", i)) list.append(` Its match is below the null's 5th percentile: it counts as ${group.side === "base" ? "lost" : "new"}.`);
      if (value("delta", i) !== null) list.append(` In the joint dictionary: ${String(name(group.columns.joint_kind ? group.columns.joint_kind[i] : null)).replace("_", "-")}, Delta ${words("delta", i, 2)}.`);
    }
    return list;
  };
  const example = ([rank, level, number, from, count, values], data) => {
    const other = group.side === "base" ? "adapted" : "base", box = element("div", undefined, "example");
    box.append(element("p", `${level === null ? `Top ${rank + 1}` : `${Math.round(100 * level)}% of active examples have a lower peak`} · ${exampleOf(number).label}`, "note"));
    const lines = group.same ? [["both", "base"]] : [[group.side, group.side], [`same latent, ${other}`, other], [`match, ${other}`, "match"]];
    lines.forEach(([title, on]) => { if (values[on]) box.append(tokenLine(title, number, spread(values[on]), data.top, 2, from, count)); });
    return box;
  };
  // Of a latent without a page of its own, the whole examples, or the tokens around the peak of long ones.
  const peak = ([number, ...flat], rank, largest) => {
    const box = element("div", undefined, "example"), values = spread(flat).map(v => v * largest / 1000);
    const top = values.reduce((a, b) => Math.max(a, b), 0), from = Math.max(0, Math.min(values.indexOf(top) - WINDOW / 2, exampleOf(number).tokens.length - WINDOW));
    box.append(element("p", `Top ${rank + 1} · ${exampleOf(number).label}`, "note"), tokenLine(group.same ? "both" : group.side, number, values, largest, 2, from, WINDOW));
    return box;
  };
  const open = () => {
    const target = /^#latent-(\d+)-(\d+)(?:-(base|adapted)(?:-(.+))?)?$/.exec(location.hash);
    if (!target) return;
    const [, l, number, s = "adapted"] = target;
    let r = data.run;
    if (target[4]) try { r = decodeURIComponent(target[4]); } catch { return; }
    const wanted = groupOf(r, l, s);
    clear();
    if (!wanted || !opens(wanted, number)) { page.append(element("p", `Latent ${number} of layer ${l} (${s}) is inactive on these examples, or not kept on this page.`, "note")); page.scrollIntoView(); return; }
    run.value = wanted.run; selected();
    layer.value = String(wanted.layer); selected();
    side.value = wanted.side; selected();
    const opened = group.pages[number], i = group.columns.latent.indexOf(Number(number));
    page.append(element("h3", `Latent ${number}: layer ${group.layer}, ${group.same ? "base and adapted" : group.side} dictionary, ${run.value}${value("kind", i) ? ` (${value("kind", i)})` : ""}`), facts(i, number));
    const [heads, peaks] = listed(group, number), largest = value("max_activation", i);
    if (heads.length) page.append(element("p", `Top tokens, with their shares of its activation: ${topTokens(number).map((word, k) => `${word} ${heads[2 * k + 1]}%`).join(", ")}.`));
    const ending = words => { page.append(element("p", words, "note")); page.focus({preventScroll: true}); page.scrollIntoView(); };
    if (!opened) {
      page.append(element("h4", "Examples with the highest activations"));
      peaks.forEach((item, rank) => page.append(peak(item, rank, largest)));
      ending(`Colour: activation from 0 to ${largest}, the largest of this latent on its side. Histograms and means by label are kept of the top latents of each dictionary.`);
      return;
    }
    const inactive = Object.entries(opened.bars).map(([on, counts]) => `${group.same ? "both sides" : on === "match" ? "match" : on}: ${(100 * counts[0] / counts.reduce((a, b) => a + b, 0)).toFixed(1)}%`).join(", ");
    plot(bars(opened), number, "activations", "Histogram of activations", `Tokens by activation, where it is active (inactive on ${inactive}). ${group.same ? "" : "Blue: this latent on base's rows; orange: the same latent on the adapted model's rows; dotted: its match, on the rows of the other side. The further apart the curves are, the more changed."}`);
    plot(classes(opened), number, "labels", "Mean activation by label", `Mean over examples of the mean activation over an example's tokens, by label, with 95% t intervals over the ${opened.classes[group.side] ? opened.classes[group.side].reduce((n, row) => n + row[5], 0) : 0} examples.`);
    live = [...page.querySelectorAll(".plot")];
    page.append(element("h4", "Examples with the highest peaks, and examples at evenly spaced ranks below"));
    if (!opened.examples.length) page.append(element("p", "It is active in no example of its side.", "note"));
    opened.examples.forEach(item => page.append(example(item, opened)));
    ending(`Colour: activation from 0 to ${opened.top}, the largest of this latent and its match on both sides.`);
  };
  fill(run, unique(catalogue.groups.map(g => g.run)), r => r);
  selectMain(run);
  fill(kind, KINDS, k => k);
  [run, layer, side].forEach(node => node.addEventListener("change", selected));
  layer.value = ""; heads(); selected();
  layer.selectedIndex = layer.options.length - 1; selected();
  [kind, within].forEach(node => node.addEventListener("change", choose)); search.addEventListener("input", choose);
  back.addEventListener("click", () => { first = Math.max(0, first - ROWS); draw(); });
  next.addEventListener("click", () => { first += ROWS; draw(); });
  addEventListener("hashchange", open);
  browse(page, at("value"));
  open();
}
