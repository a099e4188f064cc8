// The table of candidates: sorted by a click on a title, filtered by words and verdict

const table = find("candidates"),
  body = table.tBodies[0];
const lines = [...body.rows];
const keyOf = (row, column) => {
  const cell = row.cells[column],
    number = cell.dataset.value;
  return number === undefined ? cell.textContent : Number(number);
};
const sortBy = (header) => {
  const column = header.cellIndex,
    up = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const unknown = (key) => key === "";
  lines.sort((a, b) => {
    const [x, y] = [keyOf(a, column), keyOf(b, column)];
    if (unknown(x) || unknown(y)) return unknown(x) - unknown(y); // what was not measured stays below
    const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return up ? order : -order;
  });
  body.append(...lines);
};
for (const header of table.tHead.rows[0].cells)
  header.querySelector("button").addEventListener("click", () => sortBy(header));
const filter = () => {
  const words = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean),
    status = find("status").value;
  let count = 0;
  for (const row of lines) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word)) || (status !== "" && !row.classList.contains(status));
    count += !row.hidden;
  }
  const all = lines.length === 1 ? "1 candidate" : `${lines.length} candidates`;
  find("count").textContent = count === lines.length ? all : `${count} of ${all}`;
};
filter();
find("filter").addEventListener("input", filter);
find("status").addEventListener("input", filter);
