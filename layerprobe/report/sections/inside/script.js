const depth = read("data-inside");
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
