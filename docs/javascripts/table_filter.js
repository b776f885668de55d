// A box above each long table that hides the rows without the text. Pages are swapped in place by some themes, so the
// boxes are made whenever a page is shown.
const LONG = 20;

function addFilter(table) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < LONG || table.dataset.filtered) return;
  table.dataset.filtered = "yes";
  const box = document.createElement("input");
  box.type = "search";
  box.placeholder = `Filter ${rows.length} rows`;
  box.className = "table-filter";
  box.setAttribute("aria-label", "Show only rows that contain");
  const count = document.createElement("span");
  count.className = "table-filter-count";
  count.setAttribute("role", "status");
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = words.length ? `${shown} of ${rows.length}` : "";
  });
  const around = table.closest(".md-typeset__scrollwrap") ?? table;
  around.before(box, count);
}

function addFilters() {
  document.querySelectorAll("article table").forEach((table) => table.tBodies.length && addFilter(table));
}

if (typeof document$ === "undefined") document.addEventListener("DOMContentLoaded", addFilters);
else document$.subscribe(addFilters);
