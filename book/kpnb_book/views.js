// Clouds side by side on a canvas; dragging or the arrow keys turn all of them. kpnb/views.py writes the call:
// clouds = [{title, points: [[x, y, z, kind], ...]}, ...] with coordinates in [-1, 1]; colours[kind].
(canvas, clouds, colours) => {
  const pen = canvas.getContext("2d");
  let turn = 0.6, tilt = 0.35, held = null;

  function draw() {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    pen.scale(ratio, ratio);
    pen.textAlign = "center";
    pen.font = "14px sans-serif";
    const cell = width / clouds.length, size = 0.48 * Math.min(cell, height - 24);
    const [ct, st, ce, se] = [Math.cos(turn), Math.sin(turn), Math.cos(tilt), Math.sin(tilt)];
    clouds.forEach(({ title, points }, column) => {
      const x0 = (column + 0.5) * cell, y0 = (height + 24) / 2;
      pen.fillStyle = "#808080"; // reads on a light page and on a dark one
      pen.fillText(title, x0, 16);
      points
        .map(([x, y, z, kind]) => ({ right: x * ct - y * st, far: x * st + y * ct, z, kind }))
        .sort((p, q) => q.far * ce - q.z * se - p.far * ce + p.z * se) // the nearest last
        .forEach((p) => {
          pen.fillStyle = colours[p.kind];
          pen.beginPath();
          pen.arc(x0 + size * p.right, y0 - size * (p.z * ce + p.far * se), p.kind > 1 ? 3 : 1.6, 0, 7);
          pen.fill();
        });
    });
  }

  function look(newTurn, newTilt) {
    turn = newTurn;
    tilt = Math.max(-1.5, Math.min(1.5, newTilt));
    draw();
  }

  canvas.addEventListener("pointerdown", (event) => {
    held = [event.clientX, event.clientY, turn, tilt];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (held) look(held[2] + (event.clientX - held[0]) / 100, held[3] + (event.clientY - held[1]) / 100);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (held = null));
  const steps = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
  canvas.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault(); // else the page scrolls
    look(turn + step[0], tilt + step[1]);
  });
  new ResizeObserver(draw).observe(canvas);
  draw();
}
