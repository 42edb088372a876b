"use strict";

// Without this script the page shows every row in the order of measurement; with it, the reader chooses.
const table = document.getElementById("rows");

function keyOf(row, column) {
  const key = row.cells[column].dataset.key;
  if (key === undefined) return undefined;
  return key !== "" && Number.isFinite(Number(key)) ? Number(key) : key;
}

function compareKeys(one, other) {
  return typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other));
}

// What is not known comes last in both directions; equal rows keep the order of measurement.
function sortRows(column, direction) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows).sort((one, other) => one.dataset.place - other.dataset.place);
  if (column !== null) {
    rows.sort((one, other) => {
      const [left, right] = [keyOf(one, column), keyOf(other, column)];
      if (left === undefined || right === undefined) return (left === undefined) - (right === undefined);
      return direction === "descending" ? compareKeys(right, left) : compareKeys(left, right);
    });
  }
  body.append(...rows);
  Array.from(table.tHead.rows[0].cells).forEach((header, place) => {
    header.setAttribute("aria-sort", place === column ? direction : "none");
  });
  const name = column === null ? "" : table.tHead.rows[0].cells[column].textContent.trim().replace(/\s+/g, " ");
  document.getElementById("sort-by").value = column === null ? "" : String(column);
  document.getElementById("sorted").textContent = name ? `Sorted by ${name}, ${direction}.` : "In the order of measurement.";
}

function showBatch(batch) {
  for (const row of table.tBodies[0].rows) row.hidden = batch !== "" && row.dataset.batch !== batch;
}

if (table) {
  Array.from(table.tBodies[0].rows).forEach((row, place) => { row.dataset.place = place; });
  Array.from(table.tHead.rows[0].cells).forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const ascending = header.getAttribute("aria-sort") === "ascending";
      sortRows(column, ascending ? "descending" : "ascending");
    });
  });
  document.getElementById("sort-by").addEventListener("change", (event) => {
    sortRows(event.target.value === "" ? null : Number(event.target.value), "ascending");
  });
  for (const choice of document.querySelectorAll("input[name=batch]")) {
    choice.addEventListener("change", () => showBatch(choice.value));
    if (choice.checked) showBatch(choice.value);
  }
  document.querySelector(".controls").hidden = false;
}
