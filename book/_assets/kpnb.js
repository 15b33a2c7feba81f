// The renderer of ipywidgets asks MathJax 2 to typeset its labels; these pages load MathJax 3, or none.
if (window.MathJax && !window.MathJax.Hub) {
  window.MathJax.Hub = { Queue: ([, , element]) => window.MathJax.typesetPromise?.([element]) };
}
