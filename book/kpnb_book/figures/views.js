// What the views of a page do; kpnb_book/views.py writes their HTML and the calls.
({
  // H-bar - H of every unit in nats: how far it lies below the mean of the background (kpnb.points.background_level).
  gaps(entropies, foreground) {
    const background = entropies.filter((h, i) => !foreground[i] && !Number.isNaN(h));
    const level = background.reduce((sum, h) => sum + h, 0) / background.length; // NaN without background
    return { level, gaps: entropies.map((h) => level - h) };
  },

  // N_fg, N_bg and lambda (kpnb.knowledge_points); a comparison with NaN is false, and no point at all has no lambda.
  count(gaps, foreground, b) {
    const points = gaps.map((gap) => gap > b);
    const fg = points.filter((point, i) => point && foreground[i]).length;
    const all = points.filter(Boolean).length;
    return { points, fg, bg: all - fg, ratio: fg / all };
  },

  say({ fg, bg, ratio }) {
    const share = Number.isNaN(ratio) ? "undefined" : ratio.toFixed(2);
    return `N<sup>fg</sup> = ${fg}, N<sup>bg</sup> = ${bg}, λ = ${share}`;
  },

  beside: (slider) => slider.parentElement.nextElementSibling, // where a slider's value is written

  bytes: (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)),

  // Entropies written as 16-bit steps above `low`; the last step stands for NaN.
  entropies(text, low, step) {
    const pairs = this.bytes(text);
    return Array.from({ length: pairs.length / 2 }, (_, i) => {
      const level = pairs[2 * i] + 256 * pairs[2 * i + 1];
      return level === 65535 ? NaN : low + step * level;
    });
  },

  // A pen for a canvas of the size that the page gives it, sharp on any screen.
  pen(canvas) {
    const ratio = window.devicePixelRatio || 1, [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const pen = canvas.getContext("2d");
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    pen.scale(ratio, ratio);
    return { pen, width, height };
  },

  masks: (foreground) => foreground.map((mask) => [...mask].map((unit) => unit === "1")),

  // A unit of a grid of `shape` on a canvas.
  square(pen, width, [rows, columns], unit, { how, inset }) {
    const side = width / columns, tall = width / rows;
    const box = [(unit % columns) * side, Math.floor(unit / columns) * tall].map((corner) => corner + inset);
    pen[how](...box, side - 2 * inset, tall - 2 * inset);
  },

  // The colour of every knowledge point, by whether it lies on the object.
  regions: (points, inside, { fg, bg }) => points.map((point, i) => point && (inside[i] ? fg : bg)),

  // A picture, paler than it is, and units in their colours; those without one stay as they are.
  paint(canvas, { pixels, size, shape }, image, colours) {
    const { pen, width } = this.pen(canvas), raster = document.createElement("canvas");
    [raster.width, raster.height] = [size, size];
    const dots = raster.getContext("2d").createImageData(size, size);
    for (let i = 0; i < size * size; i++) {
      for (let c = 0; c < 3; c++) dots.data[4 * i + c] = 0.65 * pixels[image][3 * i + c] + 0.35 * 255;
      dots.data[4 * i + 3] = 255;
    }
    raster.getContext("2d").putImageData(dots, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(raster, 0, 0, width, width);
    pen.globalAlpha = 0.8;
    colours.forEach((colour, i) => {
      pen.fillStyle = colour;
      if (colour) this.square(pen, width, shape, i, { how: "fillRect", inset: 0.5 });
    });
  },

  // Bits of units, 8 to a byte, the highest first.
  bits(text) {
    return [...this.bytes(text)].flatMap((byte) => Array.from({ length: 8 }, (_, i) => ((byte >> (7 - i)) & 1) === 1));
  },

  // Which points both have, and which one alone.
  overlap(one, other) {
    const shared = one.filter((point, i) => point && other[i]).length;
    return { shared, all: one.filter((point, i) => point || other[i]).length };
  },

  // Knowledge points of a student and of its teacher: data = {points: {layer: {seed: {network: bits of [picture, unit]}}},
  // said: {layer: {seed: {network: text}}}, foreground: a string of 0 and 1 for each picture, pixels, size, shape,
  // colours: {fg, bg, both, teacher, student}}.
  sharing(root, data) {
    const value = (name) => root.querySelector(`[name=${name}]`).value;
    const canvases = root.querySelectorAll("canvas"), inside = this.masks(data.foreground), { colours } = data;
    const draw = () => {
      const [layer, seed, student, image] = ["layer", "seed", "student", "image"].map(value);
      const units = inside[image].length, found = data.points[layer][seed];
      const of = (network) => this.bits(found[network]).slice(image * units, (Number(image) + 1) * units);
      if (!found[student]) {
        canvases.forEach((canvas) => this.pen(canvas)); // which clears it
        return (root.querySelector("[role=status]").innerHTML = "There are no points of this training.");
      }
      const taught = of("teacher"), own = of(student), { shared, all } = this.overlap(taught, own);
      const both = taught.map((point, i) => (point ? (own[i] ? colours.both : colours.teacher) : own[i] && colours.student));
      [taught, own].forEach((points, i) =>
        this.paint(canvases[i], data, image, this.regions(points, inside[image], colours)));
      this.paint(canvases[2], data, image, both);
      const share = all ? ` (${(shared / all).toFixed(2)})` : "";
      root.querySelector("[role=status]").innerHTML =
        `${shared} of ${all} points that either has here are shared${share}. ${data.said[layer][seed][student]}`;
    };
    data.pixels = data.pixels.map(this.bytes);
    root.addEventListener("input", draw);
    new ResizeObserver(draw).observe(root);
    draw();
  },

  // Pictures on a grid: data = {maps: {network: {layer: entropies of [epoch, picture, unit]}}, low, step, range,
  // foreground: a string of 0 and 1 for each picture, pixels, size, shape, ramp, colours: {fg, bg}}.
  cells(root, data) {
    const field = (name) => root.querySelector(`[name=${name}]`);
    const [picture, map, strip] = root.querySelectorAll("canvas");
    const units = data.shape[0] * data.shape[1], inside = this.masks(data.foreground);
    const decoded = {};

    const current = () => {
      const [network, layer, image] = ["network", "layer", "image"].map((name) => field(name).value);
      const key = `${network}, ${layer}`;
      decoded[key] ??= this.entropies(data.maps[network][layer], data.low, data.step);
      const epochs = decoded[key].length / units / inside.length, slider = field("epoch");
      slider.disabled = epochs === 1;
      slider.max = epochs > 1 ? epochs - 1 : slider.max;
      const start = ((epochs === 1 ? 0 : Number(slider.value)) * inside.length + Number(image)) * units;
      return { image: Number(image), found: decoded[key].slice(start, start + units), trained: epochs === 1 };
    };

    const shade = (found, points) => {
      const { pen, width } = this.pen(map), [low, high] = data.range, last = data.ramp.length - 1;
      found.forEach((h, i) => {
        const place = Math.round((last * (h - low)) / (high - low));
        pen.fillStyle = data.ramp[Math.max(0, Math.min(last, place))] || "transparent"; // NaN
        this.square(pen, width, data.shape, i, { how: "fillRect", inset: -0.2 });
      });
      pen.strokeStyle = "#ffffff";
      points.forEach((point, i) => point && this.square(pen, width, data.shape, i, { how: "strokeRect", inset: 1 }));
    };

    // Every cell as a dot at H-bar - H, the object's above the background's; right of the line at b they count.
    const spread = (image, gaps, b) => {
      const { pen, width, height } = this.pen(strip), from = -0.6, to = 1.2, middle = height / 2;
      const x = (gap) => 8 + ((width - 16) * (Math.max(from, Math.min(to, gap)) - from)) / (to - from);
      gaps.forEach((gap, i) => {
        const fg = inside[image][i], jitter = (i * 0.618034) % 1; // golden ratio: even, and the same every time
        pen.fillStyle = fg ? data.colours.fg : data.colours.bg;
        pen.globalAlpha = gap > b ? 1 : 0.35;
        pen.beginPath();
        if (gap === gap) pen.arc(x(gap), (fg ? 0 : middle - 8) + 22 + jitter * (middle - 40), 2.5, 0, 7);
        pen.fill();
      });
      pen.globalAlpha = 1;
      pen.strokeStyle = pen.fillStyle = "#808080"; // reads on a light page and on a dark one
      pen.font = "12px sans-serif";
      pen.strokeRect(x(b), 14, 0, height - 32);
      pen.fillText("object", 0, 11);
      pen.fillText("background", 0, middle + 3);
      pen.textAlign = "center";
      pen.fillText(`b = ${b.toFixed(2)}`, x(b), 11);
      for (const tick of [-0.5, 0, 0.5, 1]) pen.fillText(tick, x(tick), height - 2);
    };

    const draw = () => {
      const b = Number(field("b").value), { image, found, trained } = current();
      const { level, gaps } = this.gaps(found, inside[image]), counted = this.count(gaps, inside[image], b);
      const epoch = trained ? "its last" : field("epoch").value;
      this.paint(picture, data, image, this.regions(counted.points, inside[image], data.colours));
      shade(found, counted.points);
      spread(image, gaps, b);
      field("epoch").setAttribute("aria-valuetext", `epoch ${epoch}`);
      field("b").setAttribute("aria-valuetext", `${b.toFixed(2)} nats`);
      this.beside(field("epoch")).textContent = epoch;
      this.beside(field("b")).textContent = `${b.toFixed(2)} nats`;
      root.querySelector("[role=status]").innerHTML = `${this.say(counted)}; mean of the background ${nats(level)}`;
    };

    const nats = (value) => `${value.toFixed(2).replace("-", "−")} nats`;
    data.pixels = data.pixels.map(this.bytes);
    root.addEventListener("input", draw);
    new ResizeObserver(draw).observe(root);
    draw();
  },

  // Texts whose tokens carry H-bar - H: the slider moves the threshold in all of them.
  tokens(root) {
    const slider = root.querySelector("[name=b]");
    slider.addEventListener("input", () => {
      const b = Number(slider.value);
      slider.setAttribute("aria-valuetext", `${b.toFixed(2)} nats`);
      this.beside(slider).textContent = `${b.toFixed(2)} nats`;
      for (const text of root.querySelectorAll("details")) {
        const tokens = [...text.querySelectorAll("[data-gap]")];
        const counted = this.count(tokens.map((t) => Number(t.dataset.gap)), tokens.map((t) => "fg" in t.dataset), b);
        tokens.forEach((token, i) => (token.style.outline = counted.points[i] ? "2px solid" : ""));
        text.querySelector("[data-counts]").innerHTML = this.say(counted);
      }
    });
  },

  // Clouds side by side; dragging or the arrow keys turn all of them.
  // clouds = [{title, points: [[x, y, z, kind], ...]}, ...] with coordinates in [-1, 1]; colours[kind].
  clouds(canvas, clouds, colours) {
    let turn = 0.6, tilt = 0.35, held = null;

    const draw = () => {
      const { pen, width, height } = this.pen(canvas);
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
    };

    const look = (newTurn, newTilt) => {
      turn = newTurn;
      tilt = Math.max(-1.5, Math.min(1.5, newTilt));
      draw();
    };

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
  },
})
