// Tables whose columns are buttons: a click sorts by the column, a second one the other way round. Empty cells come last.
document.querySelectorAll("table.sortable").forEach(table => {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column], text = cell.dataset.value ?? cell.textContent;
    return text === "–" || text === "" ? null : text;
  };
  const order = new Intl.Collator(undefined, {numeric: true});
  const compare = (one, other) => (isNaN(one) || isNaN(other) ? order.compare(one, other) : one - other);
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending", rows = [...body.rows];
    heads.forEach(other => other.setAttribute("aria-sort", other === head ? (down ? "descending" : "ascending") : "none"));
    rows.sort((one, other) => {
      const [a, b] = [value(one, column), value(other, column)];
      if (a === null || b === null) return (a === null) - (b === null);
      return down ? compare(b, a) : compare(a, b);
    });
    body.append(...rows);
  }));
});
