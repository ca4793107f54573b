"use strict";
const read = id => JSON.parse(document.getElementById(id).textContent);
const figures = read("figures"), template = read("template"), plots = [];
const ink = () => getComputedStyle(document.body).color;
const paper = () => getComputedStyle(document.body).backgroundColor;
// A text of the data for plotly, which reads tags, entities and templates in every text: as `literal` does in Python.
const literal = text => String(text).replace(/[&<>{$]/g, sign => `&#${sign.charCodeAt(0)};`);
const colours = () => ({
  "font.color": ink(), "hoverlabel.bgcolor": paper(), "hoverlabel.font.color": ink(),
  "modebar.color": ink(), "modebar.activecolor": ink(), "modebar.bgcolor": "rgba(0,0,0,0)",
});
// Images are for papers and slides: dark on white, whatever the page's colours are.
const save = (format, scale) => ({
  name: format, title: `Download as ${format.toUpperCase()}`,
  icon: {svg: `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 30 12"><path d="M0 0"/><text x="15" y="10.5" text-anchor="middle" font-family="system-ui, sans-serif" font-size="11">${format.toUpperCase()}</text></svg>`},
  click: node => {
    const layout = {...node.layout, paper_bgcolor: "#fff", font: {...node.layout.font, color: "#1b1f24"}};
    const size = {width: node.clientWidth, height: node.clientHeight};
    Plotly.downloadImage({data: node.data, layout}, {format, scale, filename: `${document.body.dataset.run}-${node.dataset.figure}`, ...size});
  },
});
const place = (node, figure) => {
  if (plots.includes(node)) plots.splice(plots.indexOf(node), 1);
  const narrow = node.clientWidth < 560, layout = {template, ...figure.layout};
  layout.font = {...layout.font, color: ink()};
  layout.hoverlabel = {bgcolor: paper(), font: {color: ink()}};
  layout.modebar = {color: ink(), activecolor: ink(), bgcolor: "rgba(0,0,0,0)"};
  // A finger that moves over a figure scrolls the page.
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;
  if (narrow) { layout.margin = {l: 50, r: 10, t: 36, b: 50}; layout.font.size = 11; }
  Plotly.newPlot(node, figure.data, layout, {responsive: true, displaylogo: false, displayModeBar: true, modeBarButtons: [[save("png", 3), save("svg", 1)]]});
  plots.push(node);
};
// A figure has one variant per combination of what its controls choose.
const controlsOf = node => [...document.querySelectorAll(`[data-chooses="${node.dataset.figure}"]`)];
const nothing = {data: [], layout: {height: 120, xaxis: {visible: false}, yaxis: {visible: false}, annotations: [
  {text: "No values for this choice.", xref: "paper", yref: "paper", x: 0, y: 1, showarrow: false},
]}};
const draw = node => {
  const variants = figures[node.dataset.figure], controls = controlsOf(node);
  place(node, variants[controls.map(control => control.value).join("|")] || (controls.length ? nothing : Object.values(variants)[0]));
};
// What is in a closed fold may have boxes.
const shownNow = node => node.checkVisibility ? node.checkVisibility() : node.getClientRects().length > 0;
document.querySelectorAll("[data-figure]").forEach(node => {
  // What is hidden has no size yet: it is drawn when it is shown.
  if (shownNow(node)) draw(node);
  controlsOf(node).forEach(control => control.addEventListener("change", () => draw(node)));
});
const refresh = part => part.querySelectorAll(".plot").forEach(node => {
  if (!shownNow(node)) return;
  if (plots.includes(node)) Plotly.Plots.resize(node); else if (node.dataset.figure in figures) draw(node);
});
document.querySelectorAll("details").forEach(fold => fold.addEventListener("toggle", () => refresh(fold)));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(node => Plotly.relayout(node, colours())));
addEventListener("beforeprint", () => plots.forEach(node => Plotly.relayout(node, {"font.color": "#1b1f24"})));
addEventListener("afterprint", () => plots.forEach(node => Plotly.relayout(node, colours())));
