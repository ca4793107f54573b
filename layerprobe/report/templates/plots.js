"use strict";
const read = id => JSON.parse(document.getElementById(id).textContent);
const figures = read("figures"), plots = [];
const ink = () => getComputedStyle(document.body).color;
const paper = () => getComputedStyle(document.body).backgroundColor;
const place = (node, figure) => {
  if (plots.includes(node)) plots.splice(plots.indexOf(node), 1);
  const narrow = node.clientWidth < 560, layout = Object.assign({}, figure.layout);
  layout.font = Object.assign({}, layout.font, {color: ink()});
  layout.hoverlabel = {bgcolor: paper(), font: {color: ink()}};
  if (narrow) { layout.margin = {l: 50, r: 10, t: 36, b: 50}; layout.font.size = 11; }
  Plotly.newPlot(node, figure.data, layout, {responsive: true, displaylogo: false, displayModeBar: false});
  plots.push(node);
};
// A figure has one variant per combination of what its controls choose.
const controlsOf = node => [...document.querySelectorAll(`[data-chooses="${node.dataset.figure}"]`)];
const draw = node => {
  const variants = figures[node.dataset.figure];
  place(node, variants[controlsOf(node).map(control => control.value).join("|")] || Object.values(variants)[0]);
};
document.querySelectorAll("[data-figure]").forEach(node => {
  draw(node);
  controlsOf(node).forEach(control => control.addEventListener("change", () => draw(node)));
});
document.querySelectorAll("details").forEach(fold => fold.addEventListener("toggle", () => fold.querySelectorAll(".plot").forEach(node => { if (plots.includes(node)) Plotly.Plots.resize(node); })));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(node => Plotly.relayout(node, {"font.color": ink()})));
