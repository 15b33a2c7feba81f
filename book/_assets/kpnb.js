// The renderer of ipywidgets asks MathJax 2 to typeset its labels; these pages load MathJax 3, or none.
if (window.MathJax && !window.MathJax.Hub) {
  window.MathJax.Hub = { Queue: ([, , element]) => window.MathJax.typesetPromise?.([element]) };
}

// Tables that another page has computed scroll in a box: the keyboard has to reach it, as the theme sees to for the others.
document.querySelectorAll("section > .output").forEach((box) => (box.tabIndex = 0));
