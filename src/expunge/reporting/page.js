"use strict";

// A click on a heading, or Enter, sorts a table.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].firstChild?.data ?? "";
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      // Values that were not measured stay at the bottom in both directions.
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    });
    body.append(...rows);
  }));
}

// The filter box above a table: a row stays visible if its heading and text cells contain every word of the box.
for (const box of document.querySelectorAll(".filter")) {
  const field = box.querySelector("input"), count = box.querySelector("output");
  const rows = [...box.parentElement.querySelector(".filter ~ .scroll").querySelectorAll("tbody tr")];
  const texts = rows.map((row) => [...row.querySelectorAll("th, .left")].map((cell) => cell.textContent).join(" ").toLowerCase());
  const apply = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row, i) => { row.hidden = !words.every((word) => texts[i].includes(word)); });
    const left = rows.filter((row) => !row.hidden).length;
    count.textContent = words.length ? `${left} of ${rows.length} rows` : `${rows.length} rows`;
  };
  field.addEventListener("input", apply);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && field.value) { field.value = ""; apply(); event.preventDefault(); }
  });
  box.hidden = false;
  apply();
}

// The figure's caption shows the values under the pointer, or at the place that the arrow keys chose.
const charts = JSON.parse(document.getElementById("charts").textContent);
const drawn = (svg, name, attributes) => {
  const shape = document.createElementNS(svg.namespaceURI, name);
  Object.entries(attributes).forEach(([key, value]) => shape.setAttribute(key, value));
  return shape;
};
for (const holder of document.querySelectorAll(".chart")) {
  const { along, box, form, stops } = charts[holder.dataset.chart], svg = holder.querySelector("svg");
  const told = holder.closest("figure").querySelector(".readout");
  if (!stops.length || !told) continue;
  const rest = told.innerHTML, cursor = drawn(svg, "g", { class: "cursor", visibility: "hidden" });
  const line = drawn(svg, "line", { y1: box[0], y2: box[1] }), ring = drawn(svg, "circle", { r: along === "x" ? 3 : 9 });
  cursor.append(...(along === "x" ? [line, ring] : [ring]));
  svg.append(cursor);
  let at = -1;
  const show = (index) => {
    at = index;
    const [x, y, text] = stops[at];
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    cursor.setAttribute("visibility", "visible");
    const numbers = text.split(" ");
    told.textContent = form ? form.replace(/{}/g, () => numbers.shift()) : text;
  };
  const hide = () => {
    at = -1;
    cursor.setAttribute("visibility", "hidden");
    told.innerHTML = rest;
  };
  const point = (event) => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const far = ([x, y]) => Math.abs(x - place.x) + (along === "x" ? 0 : Math.abs(y - place.y));
    show(stops.reduce((best, stop, i) => (far(stop) < far(stops[best]) ? i : best), 0));
  };
  const last = stops.length - 1;
  const keys = {
    ArrowRight: () => Math.min(at + 1, last), ArrowLeft: () => (at < 0 ? last : Math.max(at - 1, 0)),
    Home: () => 0, End: () => last,
  };
  holder.tabIndex = 0;
  holder.setAttribute("role", "group");
  holder.setAttribute("aria-label", "Values: arrow keys, Home, End; Escape ends");
  told.setAttribute("aria-live", "polite");
  holder.addEventListener("pointermove", point);
  holder.addEventListener("pointerdown", point);
  holder.addEventListener("pointerleave", hide);
  holder.addEventListener("blur", hide);
  holder.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    if (!(event.key in keys)) return;
    show(keys[event.key]());
    event.preventDefault();
  });
}

// A line above a table that is wider than its column says that it scrolls.
if ("ResizeObserver" in window) {
  const watch = new ResizeObserver((entries) => entries.forEach(({ target }) => {
    target.previousElementSibling.hidden = target.scrollWidth <= target.clientWidth + 1;
  }));
  for (const box of document.querySelectorAll(".scroll")) {
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.textContent = "Scroll sideways for more \u2192";
    hint.hidden = true;
    box.before(hint);
    watch.observe(box);
  }
}

// Everything is unfolded in print.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((part) => { part.open = true; });
});
addEventListener("afterprint", () => opened.forEach((part) => { part.open = false; }));
