"use strict";
const page = (() => {
  document.documentElement.classList.add("scripted");
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const make = (name, text, className) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const number = (value) => (value === null || value === undefined ? "" : value.toLocaleString("en-US"));
  const percent = (value) => (value === null || value === undefined ? "" : (100 * value).toFixed(1) + " %");
  const table = (head, lines) => {
    const made = make("table");
    const top = made.createTHead().insertRow();
    for (const cell of head) top.append(make("th", cell));
    const body = made.createTBody();
    for (const line of lines) {
      const item = body.insertRow();
      for (const cell of line) item.append(make("td", cell));
    }
    return made;
  };
  const copyText = async (text, button) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = make("textarea", text);
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "Copied";
  };
  // A chart that Python made, from its template.
  const chart = (id) => $(id).content.firstElementChild.cloneNode(true);

  // --- legends: a box switches off what has its key, or a key below it, in its figure or on the whole page ---
  document.addEventListener("change", (event) => {
    const key = event.target.dataset?.toggles;
    if (key === undefined) return;
    const figure = event.target.closest("figure");
    for (const item of (figure ?? document).querySelectorAll("[data-series]")) {
      const name = item.dataset.series;
      if (name === key || name.startsWith(key + "/")) item.classList.toggle(figure ? "off-here" : "off-everywhere", !event.target.checked);
    }
  });

  // --- values under the pointer; the arrow keys move it ---
  const SVG = "http://www.w3.org/2000/svg";
  const seriesOf = (svg) =>
    [...svg.querySelectorAll("[data-x]")]
      .filter((item) => item.dataset.x && !item.matches(".off-here, .off-everywhere"))
      .map((item) => ({ label: item.dataset.label, x: item.dataset.x.split(" ").map(Number), y: item.dataset.y.split(" ") }));
  const nearest = (sorted, value) => {
    let [low, high] = [0, sorted.length - 1];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (sorted[middle] > value) high = middle;
      else low = middle;
    }
    return value - sorted[low] <= sorted[high] - value ? low : high;
  };
  const point = (svg, x) => {
    const { low, high, start, end } = Object.fromEntries(Object.entries(svg.dataset).map(([key, value]) => [key, Number(value)]));
    const at = start + ((end - start) * (x - low)) / (high - low);
    let line = svg.querySelector(".pointer");
    if (!line) {
      line = document.createElementNS(SVG, "line");
      line.setAttribute("class", "pointer");
      svg.append(line);
    }
    for (const [key, value] of Object.entries({ x1: at, x2: at, y1: 12, y2: svg.viewBox.baseVal.height - 34 })) line.setAttribute(key, value);
    const said = seriesOf(svg).map((one) => {
      const place = nearest(one.x, x);
      return `${one.label} ${one.y[place].replace("-", "\u2212")}${one.x[place] === x ? "" : ` (at ${number(one.x[place])})`}`;
    });
    const readout = svg.closest("figure").querySelector(".readout");
    readout.textContent = `${readout.dataset.axis} ${number(x)}: ${said.join(", ")}`;
    svg.at = x;
  };
  const everyX = (svg) => [...new Set(seriesOf(svg).flatMap((one) => one.x))].sort((a, b) => a - b);
  const readouts = (where) => {
    for (const readout of where.querySelectorAll(".readout")) {
      const svg = readout.closest("figure").querySelector("svg");
      svg.setAttribute("tabindex", "0");
      svg.addEventListener("pointermove", (event) => {
        const { low, high, start, end } = svg.dataset;
        const box = svg.getBoundingClientRect();
        const at = ((event.clientX - box.left) * svg.viewBox.baseVal.width) / box.width;
        const wanted = Number(low) + ((at - start) * (high - low)) / (end - start);
        const places = everyX(svg);
        if (places.length) point(svg, places[nearest(places, wanted)]);
      });
      svg.addEventListener("keydown", (event) => {
        const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!by) return;
        event.preventDefault();
        event.stopPropagation();
        const places = everyX(svg);
        const last = places.length - 1;
        const at = svg.at === undefined ? (by > 0 ? 0 : last) : nearest(places, svg.at) + by;
        if (places.length) point(svg, places[Math.max(0, Math.min(last, at))]);
      });
    }
  };

  // --- tables that are sorted by a click on a head ---
  const valueOf = (row, column) => {
    const text = row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const parsed = parseFloat(text.replaceAll(",", "").replace("\u2212", "-"));
    return Number.isNaN(parsed) ? text : parsed;
  };
  const compare = (a, b) => {
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1; // text, and what is missing, behind numbers
  };
  const sortable = (made) => {
    const heads = [...made.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const body = made.tBodies[0];
        const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
        rows.sort(([a], [b]) => (descending ? -compare(a, b) : compare(a, b)));
        body.append(...rows.map(([, row]) => row));
      });
    });
  };

  const enliven = (where) => {
    readouts(where);
    where.querySelectorAll("table.sortable").forEach(sortable);
  };
  enliven(document);
  return { data, $, make, number, percent, table, copyText, chart, enliven };
})();
