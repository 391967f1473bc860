(() => {
  const table = document.getElementById("scans");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.querySelectorAll("th")];
  const names = new Intl.Collator(undefined, { numeric: true });

  function value(row, key) {
    if (key === "name") return row.dataset.name;
    const text = row.querySelector(`td[data-key="${key}"]`).dataset.value;
    return text === "" ? null : Number(text);
  }

  function sort(button) {
    const head = button.closest("th"), key = button.dataset.sort;
    const before = head.getAttribute("aria-sort");
    // Numbers begin with the largest, names with the first.
    const down = before ? before === "ascending" : key !== "name";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].map((row) => [value(row, key), row]);
    rows.sort(([a, one], [b, other]) => {
      const tie = names.compare(one.dataset.name, other.dataset.name);
      if (a === null || b === null) return (a === null) - (b === null) || tie; // what has no number comes last
      const order = key === "name" ? names.compare(a, b) : a - b;
      return (down ? -order : order) || tie;
    });
    body.append(...rows.map(([, row]) => row));
  }

  table.querySelectorAll("[data-sort]").forEach((button) => button.addEventListener("click", () => sort(button)));
  document.getElementById("find").addEventListener("input", (event) => {
    const wanted = event.target.value.toLocaleLowerCase();
    for (const row of body.rows) row.hidden = !row.dataset.name.toLocaleLowerCase().includes(wanted);
  });
})();
