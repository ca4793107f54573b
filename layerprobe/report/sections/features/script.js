// One method's figures about features at a time; those of the others are drawn at their size when they are shown.
const featureMethod = document.getElementById("features-method");
if (featureMethod) featureMethod.addEventListener("change", () => document.querySelectorAll(".of-method").forEach(panel => {
  panel.hidden = panel.dataset.number !== featureMethod.value;
  if (!panel.hidden) panel.querySelectorAll(".plot").forEach(draw);
}));
// A link to a figure of another method chooses that method.
document.querySelectorAll(".of-method").forEach(panel => panel.addEventListener("reveal", () => {
  featureMethod.value = panel.dataset.number;
  featureMethod.dispatchEvent(new Event("change"));
}));
