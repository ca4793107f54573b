"use strict";
const read = id => JSON.parse(document.getElementById(id).textContent);
const drawn = read("figures"), grids = read("grids"), panels = read("panels"), plots = [];
const ink = () => getComputedStyle(document.body).color;
const paper = () => getComputedStyle(document.body).backgroundColor;
const place = (node, figure) => {
  const narrow = node.clientWidth < 560, layout = Object.assign({}, figure.layout);
  layout.font = Object.assign({}, layout.font, {color: ink()});
  layout.hoverlabel = {bgcolor: paper(), font: {color: ink()}};
  if (narrow) { layout.margin = {l: 50, r: 10, t: 36, b: 50}; layout.font.size = 11; }
  Plotly.newPlot(node, figure.data, layout, {responsive: true, displaylogo: false, displayModeBar: false});
  plots.push(node);
};
document.querySelectorAll("[data-figure]").forEach(node => place(node, drawn[node.dataset.figure]));
document.querySelectorAll("[data-panel]").forEach(node => place(node, panels[Number(node.dataset.panel)][node.dataset.part]));
document.querySelectorAll("[data-grid]").forEach(node => {
  const all = grids[Number(node.dataset.grid)].figures, pick = document.querySelector(`[data-picks="${node.dataset.grid}"]`);
  place(node, all[pick ? pick.value : Object.keys(all)[0]]);
  if (pick) pick.addEventListener("change", () => { plots.splice(plots.indexOf(node), 1); place(node, all[pick.value]); });
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(node => Plotly.relayout(node, {"font.color": ink()})));
