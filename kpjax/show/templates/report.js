"use strict";
// Tables: a click on a column's name sorts by it, a second one the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("thead th")];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const rows = [...table.tBodies[0].rows];
      const values = new Map(rows.map((row) => [row, row.cells[column].dataset.value]));
      const numbers = rows.every((row) => values.get(row) !== "" && !isNaN(values.get(row)));
      const before = head.getAttribute("aria-sort");
      // numbers begin with the largest, names with the first
      const up = before ? before === "descending" : !numbers;
      const order = numbers
        ? (a, b) => values.get(a) - values.get(b)
        : (a, b) => values.get(a).localeCompare(values.get(b));
      rows.sort((a, b) => (up ? order(a, b) : order(b, a)));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      table.tBodies[0].append(...rows);
    });
  });
}
// Pictures: filtered by kind and class, sorted.
const form = document.getElementById("filters");
if (form) {
  const list = document.getElementById("cases");
  const listed = [...list.children];
  const fields = form.elements;
  const update = () => {
    let shown = 0;
    for (const item of listed) {
      const { kind, name, other } = item.dataset;
      const wanted = fields.name.value;
      item.hidden = !((!fields.kind.value || fields.kind.value === kind) && (!wanted || wanted === name || wanted === other));
      shown += !item.hidden;
    }
    const [order] = fields.order.selectedOptions;
    const sign = "down" in order.dataset ? -1 : 1;
    const key = order.value;
    const sorted = key ? [...listed].sort((a, b) => sign * (a.dataset[key] - b.dataset[key])) : listed;
    list.append(...sorted);
    fields.count.value = `${shown} of ${listed.length} pictures`;
  };
  form.addEventListener("change", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
}
