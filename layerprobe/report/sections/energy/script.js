// Sliders: efficiencies, PUE and devices per task recompute the figures of energy.
const energy = read("data-energy");
const energyAt = name => document.getElementById(`energy-${name}`);
if (energyAt("words")) {
  const settings = {...energy.settings}, topology = energyAt("topology"), devices = energyAt("devices");
  const LINKS = ["uplink", "downlink", "sidelink"], PREFIXES = [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"]];
  const scaled = (value, unit) => {
    const found = PREFIXES.find(([factor]) => Math.abs(value) >= 0.9995 * factor);
    return found ? `${Number((value / found[0]).toPrecision(3))} ${found[1]}${unit}` : `${Number(value.toPrecision(3))} ${unit}`;
  };
  const counts = () => [...new Set(energy.clusters.filter(one => one.topology === topology.value).map(one => one.devices))].sort((a, b) => a - b);
  const chosen = inner => energy.clusters.find(one => one.inner === inner && one.topology === topology.value && one.devices === counts()[devices.value]);
  const wordsOf = value => {
    if (value === null) return "undecided, because energies are lower bounds";
    if (value === 0) return "equal";
    const factor = Math.abs(value) < 2 ? `${(10 ** Math.abs(value)).toFixed(2)} times the energy` : "100 times the energy or more";
    return `${factor} ${value > 0 ? "without" : "with"} meta-training`;
  };
  const recompute = trace => {
    const {inner, kind} = trace.meta;
    if (kind === "here") { trace.x = [settings.uplink]; trace.y = [settings.sidelink]; return; }
    const cluster = chosen(inner);
    if (kind === "map") {
      trace.z = trace.y.map(sidelink => trace.x.map(uplink => advantageOf(cluster, {...settings, uplink, sidelink})));
      trace.text = trace.z.map(row => row.map(wordsOf));
      return;
    }
    const curve = curveOf(cluster, settings), x = cluster.t0.map(String);
    if (kind === "best") {
      trace.x = curve.best < 0 ? [] : [x[curve.best]]; trace.y = curve.best < 0 ? [] : [curve.total[curve.best]];
    } else if (kind === "total") {
      trace.y = curve.total;
      trace.customdata = curve.total.map((value, i) => `${cluster.censored[i] ? "at least " : ""}${scaled(value, "J")}`);
      trace.marker.symbol = cluster.censored.map(one => one ? "triangle-up" : "line-ew-open");
      trace.error_y.array = curve.total.map((value, i) => curve.high[i] === null ? null : curve.high[i] - value);
      trace.error_y.arrayminus = curve.total.map((value, i) => curve.low[i] === null ? null : value - curve.low[i]);
    } else {
      trace.y = curve.parts.map(parts => parts[kind]);
      trace.customdata = trace.y.map(value => scaled(value, "J"));
      trace.marker.pattern.shape = cluster.censored.map(one => one ? "/" : "");
    }
  };
  const answer = () => {
    const sentences = [...new Set(energy.clusters.map(one => one.inner))].map(inner => {
      const cluster = chosen(inner), curve = curveOf(cluster, settings);
      if (curve.best < 0) return `${inner}: no t0 reached the target for every task`;
      const parts = curve.parts[curve.best], share = (parts.uplink + parts.downlink + parts.sidelink) / curve.total[curve.best];
      return `${inner}: best t0 = ${cluster.t0[curve.best]}, ${scaled(curve.total[curve.best], "J")}, ${Math.round(100 * share)}% communication`;
    });
    return `With these settings – ${sentences.join("; ")}.`;
  };
  const words = (name, text) => {
    energyAt(`${name}-words`).textContent = text;
    energyAt(name).setAttribute("aria-valuetext", text);
  };
  const update = () => {
    LINKS.forEach(name => words(name, `${scaled(settings[name], "bit")}/J`));
    words("pue", settings.pue.toFixed(2));
    devices.max = counts().length - 1;
    words("devices", String(counts()[devices.value]));
    energyAt("words").textContent = answer();
    ["energy_parts", "energy_map"].forEach(name => {
      Object.values(figures[name] || {}).forEach(figure => figure.data.forEach(recompute));
      const node = document.querySelector(`[data-figure="${name}"]`);
      if (node && shownNow(node)) draw(node);
    });
  };
  let waiting = false;
  const soon = () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; update(); }); } };
  topology.value = energy.shown.topology;
  devices.max = counts().length - 1;
  devices.value = counts().indexOf(energy.shown.devices);
  LINKS.forEach(name => { energyAt(name).value = Math.log10(settings[name]); });
  energyAt("pue").value = settings.pue;
  document.querySelectorAll("[data-setting]").forEach(slider => slider.addEventListener("input", () => {
    settings[slider.dataset.setting] = slider.dataset.setting === "pue" ? Number(slider.value) : 10 ** Number(slider.value);
    soon();
  }));
  [topology, devices].forEach(control => control.addEventListener("input", soon));
  update();
}
