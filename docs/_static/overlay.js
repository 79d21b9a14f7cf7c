"use strict";
// Lays the curves of the chosen losses over one another. What is chosen stands in the address, after #.
(() => {
  const root = document.getElementById("overlay");
  if (!root) return;
  const { x, curves, start } = page.data;
  const [plot, said, scaled] = ["plot", "said", "scaled"].map((id) => document.getElementById(id));
  const boxes = [...root.querySelectorAll(".families input")];
  const LEFT = 50, RIGHT = 14, TOP = 12, BOTTOM = 40, COLORS = 8;
  let [WIDTH, HEIGHT] = [640, 380]; // in units of a pixel, so that letters keep their size on a phone
  const SVG = "http://www.w3.org/2000/svg";
  const draw = (parent, name, attributes, text) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  };
  const shown = (value) => String(Number(value.toPrecision(4))).replace("-", "\u2212");
  let chosen = [];
  let at = null;

  const what = () => root.querySelector("input[name=what]:checked").value;
  const middle = x.indexOf(0);
  const values = (name) => {
    const slope = Math.abs(curves[name].gradient[middle]);
    const by = scaled.checked && slope > 0 ? slope : 1;
    return curves[name][what()].map((value) => value / by);
  };

  const ticks = (low, high, count) => {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => power * factor >= rough * 0.999);
    const found = [];
    for (let place = Math.ceil(low / step - 1e-9); place * step <= high + 1e-9 * step; place++) found.push(place * step);
    return found;
  };

  const range = (series) => {
    // A loss that grows without bound would flatten the others: the axis shows where most of the curves are.
    const all = series.flatMap((one) => one.y).sort((a, b) => a - b);
    const quantile = (share) => all[Math.round(share * (all.length - 1))];
    let [low, high] = [all[0], all[all.length - 1]];
    if (series.length > 1) {
      const tops = series.map((one) => Math.max(...one.y)).sort((a, b) => a - b);
      const bottoms = series.map((one) => Math.min(...one.y)).sort((a, b) => a - b);
      high = Math.min(high, 3 * Math.max(tops[(tops.length - 1) >> 1], quantile(0.5)));
      low = Math.max(low, -3 * Math.max(-bottoms[bottoms.length >> 1], -quantile(0.5), 0.02 * Math.abs(high)));
    }
    if (!(high > low)) [low, high] = [low - 0.5, high + 0.5];
    const margin = 0.05 * (high - low);
    return [low - margin, high + margin];
  };

  const render = () => {
    for (const box of boxes) {
      const place = chosen.indexOf(box.value);
      box.checked = place >= 0;
      const key = box.parentElement.querySelector(".key");
      key.className = place < 0 ? "key" : `key on c${place % COLORS}${place >= COLORS ? " dashed" : ""}`;
    }
    plot.replaceChildren();
    WIDTH = Math.max(300, plot.clientWidth - 16);
    HEIGHT = Math.round(Math.min(400, Math.max(260, 0.6 * WIDTH)));
    const series = chosen.map((name, place) => ({ name, place, y: values(name) }));
    const svg = draw(plot, "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" });
    const [low, high] = series.length ? range(series) : [0, 1];
    const across = (value) => LEFT + ((WIDTH - LEFT - RIGHT) * (value - x[0])) / (x[x.length - 1] - x[0]);
    const up = (value) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * (value - low)) / (high - low);
    const grid = draw(svg, "g", { class: "grid" });
    for (const value of ticks(low, high, 6)) {
      draw(grid, "line", { x1: LEFT, x2: WIDTH - RIGHT, y1: up(value), y2: up(value) });
      draw(grid, "text", { x: LEFT - 6, y: up(value) + 4, "text-anchor": "end" }, shown(value));
    }
    for (const value of ticks(x[0], x[x.length - 1], WIDTH > 450 ? 8 : 4)) {
      draw(grid, "line", { x1: across(value), x2: across(value), y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4 });
      draw(grid, "text", { x: across(value), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, shown(value));
    }
    draw(grid, "text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 5, "text-anchor": "middle" }, "margin (nats)");
    draw(svg, "line", { class: "zero", x1: across(0), x2: across(0), y1: TOP, y2: HEIGHT - BOTTOM });
    const clip = draw(draw(svg, "defs", {}), "clipPath", { id: "inside" });
    draw(clip, "rect", { x: LEFT, y: TOP, width: WIDTH - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM });
    const lines = draw(svg, "g", { "clip-path": "url(#inside)" });
    for (const { name, place, y } of series) {
      const points = y.map((value, index) => `${across(x[index]).toFixed(1)},${Math.max(-1e4, Math.min(1e4, up(value))).toFixed(1)}`);
      const dashed = place >= COLORS ? " dashed" : "";
      draw(lines, "polyline", { points: points.join(" "), class: `curve c${place % COLORS}${dashed}`, "data-loss": name });
    }
    if (at !== null) draw(svg, "line", { class: "pointer", x1: across(x[at]), x2: across(x[at]), y1: TOP, y2: HEIGHT - BOTTOM });
    plot.setAttribute("aria-label", `${what()} of ${chosen.join(", ") || "no loss"} against the margin`);
    const place = at ?? middle;
    said.replaceChildren(series.length ? `At margin ${shown(x[place])}: ` : "Choose losses below.");
    series.forEach(({ name, place: color, y }, index) => {
      const one = page.make("span", undefined, "one");
      one.append(page.make("span", undefined, `key on c${color % COLORS}${color >= COLORS ? " dashed" : ""}`));
      one.append(`${name} ${shown(y[place])}${index < series.length - 1 ? "," : ""}`);
      said.append(one, " ");
    });
  };

  const remember = () => {
    const parts = [`losses=${chosen.join(",")}`, what() === "gradient" ? "show=gradient" : "", scaled.checked ? "scaled=1" : ""];
    history.replaceState(null, "", `#${parts.filter(Boolean).join("&")}`);
  };
  const recall = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    const named = asked.has("losses") ? asked.get("losses").split(",") : start;
    chosen = [...new Set(named)].filter((name) => Object.hasOwn(curves, name));
    const show = asked.get("show") === "gradient" ? "gradient" : "value";
    for (const radio of root.querySelectorAll("input[name=what]")) radio.checked = radio.value === show;
    scaled.checked = asked.get("scaled") === "1";
  };

  root.addEventListener("change", (event) => {
    const { type, name, value, checked } = event.target;
    if (type === "checkbox" && Object.hasOwn(curves, value) && event.target !== scaled) {
      chosen = checked ? [...chosen, value] : chosen.filter((one) => one !== value);
    }
    remember();
    render();
  });
  document.getElementById("none").addEventListener("click", () => {
    chosen = [];
    remember();
    render();
  });
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const place = ((event.clientX - box.left) * WIDTH) / box.width;
    const share = (place - LEFT) / (WIDTH - LEFT - RIGHT);
    at = Math.max(0, Math.min(x.length - 1, Math.round(share * (x.length - 1))));
    render();
  });
  plot.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation(); // the theme turns pages by arrows
    at = Math.max(0, Math.min(x.length - 1, (at ?? middle) + by));
    render();
  });
  window.addEventListener("resize", render);
  window.addEventListener("hashchange", () => {
    recall();
    render();
  });
  recall();
  render();
})();
