// Shows the values of a chart's curves at a step, under the pointer or chosen with the arrow keys.
"use strict";

{
  const SVG = "http://www.w3.org/2000/svg";
  const tip = document.createElement("div");
  tip.className = "tip readout";
  tip.hidden = true;
  tip.ariaHidden = "true"; // the chart announces the values as aria-valuetext
  document.querySelector("main").append(tip);

  const text = (x) => {
    const small = x !== 0 && Math.abs(x) < 1e-3;
    return (small || Math.abs(x) >= 1e5 ? x.toExponential(3) : x.toFixed(4)).replace("-", "−");
  };

  const nearest = (numbers, wanted) => numbers.reduce(
    (best, number, i) => Math.abs(number - wanted) < Math.abs(numbers[best] - wanted) ? i : best, 0);

  function prepare(chart) {
    const { box: [left, top, right, bottom], x, y, curves } = JSON.parse(chart.dataset.readout);
    const steps = [...new Set(curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
    const svg = chart.querySelector("svg"), { width, height } = svg.viewBox.baseVal;
    const X = (step) => width * (left + (right - left) * (step - x[0]) / (x[1] - x[0]));
    const Y = (value) => height * (bottom + (top - bottom) * (value - y[0]) / (y[1] - y[0]));
    const marks = document.createElementNS(SVG, "g");
    marks.setAttribute("class", "marks");
    svg.append(marks);
    let current = -1; // index of the step

    function mark(tag, attributes, colour) {
      const element = document.createElementNS(SVG, tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      element.style.color = colour;
      marks.append(element);
    }

    function line(curve, step) {
      const i = nearest(curve.steps, step), value = curve.values[i];
      mark("circle", { cx: X(curve.steps[i]), cy: Y(value), r: 3.5 }, curve.colour);
      const range = curve.most ? ` (${text(curve.least[i])} to ${text(curve.most[i])})` : "";
      const elsewhere = curve.steps[i] === step ? "" : `, step ${curve.steps[i]}`;
      return { name: curve.name, colour: curve.colour, said: text(value) + range + elsewhere };
    }

    function show(number) {
      current = number;
      marks.replaceChildren();
      const step = steps[number];
      mark("line", { x1: X(step), x2: X(step), y1: height * top, y2: height * bottom }, "");
      const lines = curves.map((curve) => line(curve, step));
      tip.replaceChildren(row("step", step), ...lines.map((one) => row(one.name, one.said, one.colour)));
      tip.hidden = false;
      place(X(step) / width);
      chart.ariaValueNow = step;
      chart.ariaValueText = [`step ${step}`, ...lines.map((one) => `${one.name} ${one.said}`)].join("; ");
    }

    function row(name, said, colour) {
      const p = document.createElement("p"), dot = document.createElement("i");
      dot.style.color = colour ?? "transparent";
      p.append(dot, `${name} `, Object.assign(document.createElement("b"), { textContent: said }));
      return p;
    }

    function place(share) { // above or below the curves, never on them
      const drawn = svg.getBoundingClientRect(), own = tip.getBoundingClientRect();
      const beside = drawn.left + share * drawn.width - own.width / 2;
      const above = drawn.top + top * drawn.height - own.height - 6;
      tip.style.left = `${Math.max(4, Math.min(beside, innerWidth - own.width - 4))}px`;
      tip.style.top = `${above > 4 ? above : drawn.top + bottom * drawn.height + 6}px`;
    }

    function hide() {
      tip.hidden = true;
      marks.replaceChildren();
    }

    function follow(event) {
      const drawn = svg.getBoundingClientRect();
      const share = ((event.clientX - drawn.left) / drawn.width - left) / (right - left);
      show(nearest(steps, x[0] + share * (x[1] - x[0])));
    }

    Object.assign(chart, { role: "slider", tabIndex: 0, ariaValueMin: steps[0],
      ariaValueMax: steps.at(-1), ariaValueNow: steps[0], ariaValueText: "arrow keys read values" });
    chart.addEventListener("pointermove", follow);
    chart.addEventListener("pointerdown", follow);
    chart.addEventListener("pointerleave", hide);
    chart.addEventListener("blur", hide);
    document.addEventListener("scroll", hide, { passive: true });
    chart.addEventListener("keydown", (event) => {
      const last = steps.length - 1;
      const to = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: last }[event.key];
      if (event.key === "Escape") hide();
      if (to === undefined) return;
      event.preventDefault();
      show(Math.max(0, Math.min(last, to)));
    });
  }

  for (const chart of document.querySelectorAll("[data-readout]")) prepare(chart);
}
