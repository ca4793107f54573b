// The contents list marks what is being read, links open what they point to, and wide parts can be scrolled by keyboard.
{
  const nav = document.querySelector("nav");
  const entries = [...nav.querySelectorAll("a")].map(link => ({link, target: document.getElementById(link.hash.slice(1)), top: link.parentNode.parentNode.parentNode === nav}));
  const visible = node => node.getClientRects().length > 0;
  // Where a figure is drawn once per method, its first place may be hidden: the contents list means the one that is shown.
  const twin = node => {
    if (!node.closest("[hidden]") || !node.dataset.figure) return node;
    return [...document.querySelectorAll(`[data-figure^="${node.dataset.figure}-"]`)].find(other => !other.closest("[hidden]")) || node;
  };
  const mark = () => {
    const line = innerHeight * 0.35, passed = entries.filter(({target}) => target && twin(target).getBoundingClientRect().top <= line && visible(twin(target)));
    const section = passed.filter(entry => entry.top).pop() || entries[0];
    const figure = passed.filter(entry => !entry.top && section.target.contains(entry.target)).pop();
    entries.forEach(({link}) => { link.removeAttribute("aria-current"); link.parentNode.classList.remove("here"); });
    section.link.parentNode.classList.add("here");
    section.link.setAttribute("aria-current", figure ? "true" : "location");
    if (figure) figure.link.setAttribute("aria-current", "location");
    // Only the list scrolls, not the page.
    const current = (figure || section).link.getBoundingClientRect(), frame = nav.getBoundingClientRect();
    if (current.bottom > frame.bottom || current.top < frame.top) nav.scrollTop += current.top - frame.top - frame.height / 2;
  };
  let waiting = false;
  const soon = () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; mark(); }); } };
  addEventListener("scroll", soon, {passive: true});
  addEventListener("resize", soon);

  const reveal = () => {
    let target = null;
    try { target = document.getElementById(decodeURIComponent(location.hash.slice(1))); } catch { return; }
    if (!target) return;
    target = twin(target);
    for (let node = target; node; node = node.parentElement) {
      if (node.tagName === "DETAILS") node.open = true;
      if (node.hidden) node.dispatchEvent(new Event("reveal"));
    }
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  nav.addEventListener("click", event => { if (event.target.hash && event.target.hash === location.hash) reveal(); });

  const scrollable = node => {
    const scrolls = node.scrollWidth > node.clientWidth + 1;
    node.classList.toggle("scrolls", scrolls);
    if (!scrolls) { ["tabindex", "role", "aria-label"].forEach(name => node.removeAttribute(name)); return; }
    const table = node.querySelector("table, .plot"), words = table && table.getAttribute("aria-label");
    let before = node;
    while (before && !words && !/^H[1-4]$/.test(before.tagName)) before = before.previousElementSibling || before.parentElement;
    node.tabIndex = 0;
    node.setAttribute("role", "region");
    node.setAttribute("aria-label", `${words || (before && before.textContent) || "Table"}, scrolls sideways`);
  };
  // The cue changes sizes itself, which must not happen while they are observed.
  const sizes = new ResizeObserver(changes => requestAnimationFrame(() => new Set(changes.map(({target}) => target.closest(".wide"))).forEach(scrollable)));
  document.querySelectorAll(".wide").forEach(node => { sizes.observe(node); [...node.children].forEach(child => sizes.observe(child)); });
  if (location.hash) reveal();
  mark();
}
