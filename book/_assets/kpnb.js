// The renderer of ipywidgets asks MathJax 2 to typeset its labels; these pages load MathJax 3, or none.
if (window.MathJax && !window.MathJax.Hub) {
  window.MathJax.Hub = { Queue: ([, , element]) => window.MathJax.typesetPromise?.([element]) };
}

// Tables that another page has computed scroll in a box: the keyboard has to reach it, as the theme sees to for the others.
document.querySelectorAll("section > .output").forEach((box) => (box.tabIndex = 0));

// Figures open at full size: by a tap, a click or the keyboard. On a telephone their lettering would be too small.
(() => {
  const box = document.createElement("dialog");
  const close = document.createElement("button");
  const scroller = document.createElement("div");
  const large = document.createElement("img");
  box.className = "kpnb-large";
  close.type = "button";
  close.textContent = "Close";
  scroller.tabIndex = 0; // the arrow keys move a figure that is larger than the window
  scroller.setAttribute("role", "region");
  scroller.append(large);
  box.append(close, scroller);
  close.addEventListener("click", () => box.close());
  // A click beside the figure. The browser itself sees to Escape, and to where the focus comes from and goes back to.
  box.addEventListener("click", ({ target }) => [box, scroller].includes(target) && box.close());
  box.addEventListener("close", () => document.documentElement.classList.remove("kpnb-still"));

  const open = (figure) => {
    large.src = figure.currentSrc;
    large.alt = figure.alt;
    for (const part of [box, scroller]) part.setAttribute("aria-label", figure.alt || "Figure");
    document.documentElement.classList.add("kpnb-still");
    box.showModal();
    const room = Math.min(scroller.clientWidth, 2 * figure.naturalWidth); // a small one grows, not without end
    large.style.width = `${Math.max(figure.naturalWidth, room)}px`;
    close.focus();
  };

  const figures = document.querySelectorAll(".bd-article .cell_output img:not(a img, .kpnb-view img)");
  for (const figure of figures) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "kpnb-zoom";
    button.setAttribute("aria-haspopup", "dialog");
    button.title = "Open at full size";
    figure.before(button);
    button.append(figure);
    button.addEventListener("click", () => open(figure));
  }
  if (figures.length) document.body.append(box);
})();

// Boxes that scroll sideways say so, and of a table that ends in the verdict it stays in sight.
(() => {
  const boxes = ".bd-article :is(.text_html, section > .output, .pst-scrollable-table-container)";
  const look = new ResizeObserver((changes) => {
    for (const { target } of changes) target.classList.toggle("kpnb-wide", target.scrollWidth > target.clientWidth + 1);
  });
  for (const box of document.querySelectorAll(boxes)) {
    const table = box.querySelector("table");
    const last = table?.querySelector("thead th:last-child");
    if (table) look.observe(box);
    if (last?.textContent.trim() === "verdict") table.classList.add("kpnb-verdict");
  }
})();
