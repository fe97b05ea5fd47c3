// The explorer: inputs -> loss, its slopes and three drawings, updated at each change.
"use strict";

const explorer = (() => {
  const root = document.getElementById("explorer");
  if (!root) return {};
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const $ = (name) => root.querySelector(`[data-is="${name}"]`);
  const state = { loss: data.start.loss, chosen: 0, rejected: 0, given: {} };
  const REACH = 20; // range of the sliders in nats, either way; a loaded pair can extend it
  let reach = REACH;

  const shown = (x, digits = 4) => {
    if (Math.abs(x) < 10 ** -digits / 2) return (0).toFixed(digits); // no minus zero
    const size = Math.abs(x);
    return (size >= 1e5 || size < 1e-3 ? x.toExponential(3) : x.toFixed(digits)).replace("-", "−");
  };
  const signed = (x, digits = 2) => (x > 0 ? "+" : "") + shown(x, digits);

  function results() {
    const { chosen: c, rejected: r, given } = state;
    const loss = LOSSES[state.loss];
    const [up, down] = pushes(loss, c, r, given);
    const margin = c - r, scaled = given.beta * margin;
    return { margin, scaled, probability: sigmoid(scaled), loss: loss(c, r, given), up, down,
      weight: sigmoid(-scaled) };
  }

  function update() {
    const found = results();
    for (const name of ["margin", "scaled", "probability", "loss", "weight", "up", "down"])
      $(name).textContent = shown(found[name]);
    drawRatios($("ratios"), state, found);
    drawPushes($("pushes"), found);
    drawLoss($("curve"));
    clearTimeout(update.later);
    update.later = setTimeout(() => { // screen readers announce the final value, not each step
      $("spoken").textContent = `Margin ${shown(found.margin, 2)} nats, loss ${shown(found.loss)}`;
    }, 500);
  }

  // --- drawings: 400 units wide with text of size 13, which a phone shows at nearly full size
  const SVG = "http://www.w3.org/2000/svg";
  function add(parent, tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }

  function bars(svg, rows, least) {
    svg.replaceChildren();
    const most = Math.max(least, ...rows.map(([, value]) => Math.abs(value)));
    const middle = 200, wide = 100;
    rows.forEach(([label, value, kind, text], i) => {
      const y = 8 + i * 30, length = (Math.abs(value) / most) * wide;
      add(svg, "text", { x: 0, y: y + 15 }, label);
      add(svg, "rect", { x: value < 0 ? middle - length : middle, y, width: length, height: 20, class: kind });
      add(svg, "text", { x: 400, y: y + 15, "text-anchor": "end", class: "number" }, text);
    });
    add(svg, "line", { x1: middle, x2: middle, y1: 0, y2: rows.length * 30 + 6, class: "axis" });
  }

  function drawRatios(svg, { chosen, rejected }, { margin }) {
    bars(svg, [
      ["chosen", chosen, "chosen", signed(chosen)],
      ["rejected", rejected, "rejected", signed(rejected)],
      ["margin", margin, "margin", signed(margin)],
    ], 5);
  }

  function drawPushes(svg, { up, down }) {
    const text = (x) => (x > 0 ? "up " : x < 0 ? "down " : "") + shown(Math.abs(x));
    bars(svg, [["on chosen", up, "chosen", text(up)], ["on rejected", down, "rejected", text(down)]], 1e-9);
  }

  function drawLoss(svg) {
    const left = 52, right = 392, top = 10, bottom = 196, points = 161;
    const { chosen, rejected, given } = state, loss = LOSSES[state.loss];
    const at = (side, x) => side === "chosen" ? loss(x, rejected, given) : loss(chosen, x, given);
    const xs = Array.from({ length: points }, (_, i) => -reach + (2 * reach * i) / (points - 1));
    const here = loss(chosen, rejected, given);
    // extreme values far away must not flatten the curve nearby
    const values = ["chosen", "rejected"].flatMap((side) => xs.map((x) => at(side, x)));
    const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
    const high = Math.max(here, sorted[Math.floor(sorted.length * 0.9)]);
    const low = Math.min(0, sorted[0]), space = (high - low) * 0.08 || 1;
    const X = (x) => left + ((x + reach) / (2 * reach)) * (right - left);
    const Y = (y) => bottom - ((y - low) / (high + space - low)) * (bottom - top);
    svg.replaceChildren();
    const clip = add(add(svg, "clipPath", { id: "explorer-clip" }), "rect",
      { x: left, y: 0, width: right - left, height: bottom });
    clip.setAttribute("data-clip", "");
    for (const y of [low, (low + high) / 2, high]) {
      add(svg, "line", { x1: left, x2: right, y1: Y(y), y2: Y(y), class: "grid" });
      const size = Math.abs(high - low);
      const text = size >= 1e4 ? y.toExponential(0) : y.toFixed(size < 2 ? 2 : size < 20 ? 1 : 0);
      add(svg, "text", { x: left - 6, y: Y(y) + 4, "text-anchor": "end", class: "number" }, text);
    }
    for (const x of [-reach, -reach / 2, 0, reach / 2, reach])
      add(svg, "text", { x: X(x), y: bottom + 18, "text-anchor": x < reach ? "middle" : "end", class: "number" },
        String(+x.toPrecision(3)).replace("-", "−"));
    add(svg, "line", { x1: X(0), x2: X(0), y1: top, y2: bottom, class: "axis" });
    for (const side of ["rejected", "chosen"]) {
      const path = xs.map((x, i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(at(side, x)).toFixed(1)}`);
      add(svg, "path", { d: path.join(""), class: `line ${side}`, "clip-path": "url(#explorer-clip)" });
    }
    add(svg, "path", { d: diamond(X(rejected), Y(here)), class: "dot rejected" });
    add(svg, "circle", { cx: X(chosen), cy: Y(here), r: 6, class: "dot chosen" });
    add(svg, "text", { x: (left + right) / 2, y: bottom + 36, "text-anchor": "middle" }, "log-ratio, nats");
  }
  const diamond = (x, y) => `M${x - 8} ${y}L${x} ${y - 8}L${x + 8} ${y}L${x} ${y + 8}Z`;

  // --- inputs: each has a slider and a number; beta's slider is logarithmic
  const toSlider = { beta: Math.log10 }, fromSlider = { beta: (x) => 10 ** x };

  function take(name, value, source) {
    if (!Number.isFinite(value) || (name === "beta" && value <= 0)) return;
    if (name === "beta") state.given.beta = value;
    else state[name] = value;
    const number = $(`${name}-number`), slider = $(`${name}-slider`);
    if (source !== number) number.value = +value.toPrecision(name === "beta" ? 3 : 6);
    if (source !== slider) slider.value = (toSlider[name] ?? Number)(value);
    slider.setAttribute("aria-valuetext", number.value + (name === "beta" ? "" : " nats"));
    update();
  }

  function widen(...values) {
    reach = Math.max(REACH, ...values.map((x) => Math.ceil(Math.abs(x) / 10) * 10));
    for (const name of ["chosen", "rejected"]) {
      $(`${name}-slider`).min = -reach;
      $(`${name}-slider`).max = reach;
    }
  }

  function takeLoss(name, given = {}) {
    const about = data.losses[name];
    state.loss = name;
    state.given = { ...about.arguments };
    for (const [key, value] of Object.entries(given))
      if (key in state.given && Number.isFinite(value)) state.given[key] = value;
    $("loss-name").value = name;
    $("formula").textContent = about.formula;
    $("paper").textContent = about.paper;
    $("choose").textContent = about.choose;
    const more = Object.keys(state.given).filter((key) => key !== "beta");
    $("arguments").replaceChildren(...more.map(argument));
    take("beta", state.given.beta);
  }

  function argument(name) {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "number", step: "any", value: state.given[name] });
    input.dataset.is = `${name}-number`;
    input.addEventListener("input", () => {
      if (input.value === "" || !Number.isFinite(+input.value)) return;
      state.given[name] = +input.value;
      update();
    });
    label.append(name.replaceAll("_", " "), " ", input);
    return label;
  }

  function loadPair(number) {
    const pair = data.pairs[number];
    if (!pair) return;
    widen(pair.chosen, pair.rejected);
    take("chosen", pair.chosen);
    take("rejected", pair.rejected);
    if (pair.beta) take("beta", pair.beta);
    $("pair").value = number;
  }

  for (const name of Object.keys(data.losses)) $("loss-name").append(new Option(name, name));
  data.pairs.forEach((pair, i) => $("pair").append(new Option(pair.label, i)));
  for (const name of ["chosen", "rejected", "beta"]) {
    const slider = $(`${name}-slider`), number = $(`${name}-number`);
    slider.addEventListener("input", () => take(name, (fromSlider[name] ?? Number)(+slider.value), slider));
    number.addEventListener("input", () => number.value !== "" && take(name, +number.value, number));
  }
  $("loss-name").addEventListener("change", (event) => takeLoss(event.target.value));
  $("load")?.addEventListener("click", () => loadPair($("pair").value));
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-pair]");
    if (!button) return;
    loadPair(button.dataset.pair);
    root.scrollIntoView();
    $("chosen-slider").focus({ preventScroll: true });
  });
  widen();
  takeLoss(state.loss, data.start.given);
  take("chosen", 2);
  take("rejected", -1);
  root.hidden = false;
  return { state, results };
})();
