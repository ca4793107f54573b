// One method's figures about features at a time; those of the others are drawn at their size when they are shown.
const featureMethod = document.getElementById("features-method");
if (featureMethod) featureMethod.addEventListener("change", () => document.querySelectorAll(".of-method").forEach(panel => {
  panel.hidden = panel.dataset.number !== featureMethod.value;
  if (!panel.hidden) panel.querySelectorAll(".plot").forEach(draw);
}));
