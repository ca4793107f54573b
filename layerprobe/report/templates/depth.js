const depth = read("depth-data");
document.querySelectorAll("[data-chosen]").forEach(node => {
  const group = depth.groups[node.dataset.chosen], picks = [...document.querySelectorAll(`[data-chooses="${node.dataset.chosen}"]`)];
  const draw = () => { if (plots.includes(node)) plots.splice(plots.indexOf(node), 1); place(node, group[picks.map(pick => pick.value).join("|")] || Object.values(group)[0]); };
  picks.forEach(pick => pick.addEventListener("change", draw));
  draw();
});
if (depth.slider) {
  const node = document.getElementById("depth-drift"), slider = document.getElementById("depth-slider"), said = document.getElementById("depth-said");
  const {figure, steps} = depth.slider;
  place(node, figure);
  const bring = () => {
    const chosen = Number(slider.value), roles = figure.data.map(trace => trace.meta);
    Plotly.restyle(node, {
      opacity: roles.map(role => role.role === "band" ? 0.25 : role.place === chosen ? 1 : 0.55),
      visible: roles.map(role => role.role === "line" || role.place === chosen),
      "line.width": roles.map(role => role.role === "band" ? 0 : role.place === chosen ? 4 : 1.5),
    });
    said.textContent = steps[chosen].words;
    slider.setAttribute("aria-valuetext", steps[chosen].words);
  };
  slider.addEventListener("input", bring);
  bring();
}
document.querySelectorAll("details").forEach(fold => fold.addEventListener("toggle", () => fold.querySelectorAll(".plot").forEach(node => { if (plots.includes(node)) Plotly.Plots.resize(node); })));
