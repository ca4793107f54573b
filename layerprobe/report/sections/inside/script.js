const {steps} = read("data-inside");
if (steps.length) {
  const node = document.querySelector("#inside .plot"), slider = document.getElementById("depth-slider"), output = document.getElementById("depth-words");
  const highlight = () => {
    const chosen = Number(slider.value), roles = node.data.map(trace => trace.meta);
    Plotly.restyle(node, {
      opacity: roles.map(role => role.role === "band" ? 0.25 : role.place === chosen ? 1 : 0.55),
      visible: roles.map(role => role.role === "line" || role.place === chosen),
      "line.width": roles.map(role => role.role === "band" ? 0 : role.place === chosen ? 4 : 1.5),
    });
    output.textContent = steps[chosen];
    slider.setAttribute("aria-valuetext", steps[chosen]);
  };
  slider.addEventListener("input", highlight);
  highlight();
}
