const $ = (selector) => document.querySelector(selector), all = (selector) => document.querySelectorAll(selector);
const { columns, values, parts } = JSON.parse($("#data").textContent);
const body = $(".cases tbody"), rows = [...body.rows], box = $("dialog"), nav = $("nav"), select = $("#metric");
const images = (i) => [...rows[i].querySelectorAll("img")], id = (i) => rows[i].cells[0].textContent;
const bare = (i) => rows[i].classList.contains("bare"), on = (name, act) => ($(name).onclick = act);
const copy = (image) => make("img", { src: image.src, alt: image.alt });
function make(tag, fields, ...inside) {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...inside);
  return element;
}

// the list, sorted
let order = rows.map((_, i) => i);
function compare(a, b, column, sign) {
  if (column < 0) return sign * id(a).localeCompare(id(b), undefined, { numeric: true }) || a - b;
  const [x, y] = [values[column][a], values[column][b]];
  if (x === null || y === null) return (x === null) - (y === null) || a - b;
  return sign * (columns[column].better === "1" ? Math.abs(x - 1) - Math.abs(y - 1) : x - y) || a - b;
}
function sort(head) {
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of all("th[aria-sort]")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  order.sort((a, b) => compare(a, b, Number(head.dataset.column), up ? 1 : -1));
  body.append(...order.map((i) => rows[i]));
}
for (const head of all("th[data-column]")) {
  const title = columns[head.dataset.column]?.better === "1" ? "sort by the distance from 1" : "sort";
  head.replaceChildren(make("button", { title, onclick: () => sort(head) }, ...head.childNodes));
}
$("#some").hidden = !order.some(bare);
(on("#only", () => body.classList.toggle("only", $("#only").checked)))();

// one case, large
let list = [], at = 0, part = 3;
function show() {
  const four = images(list[at]), cells = [...rows[list[at]].querySelectorAll(".score")];
  $("dialog code").textContent = id(list[at]);
  $("#scores").textContent = cells.map((cell) => `${cell.dataset.label} ${cell.textContent}`).join("  ·  ");
  Object.assign($(".big img"), { src: four[part].src, alt: four[part].alt });
  const small = (image, i) => make("button", { onclick: () => turn(i - part, 0) }, copy(image), parts[i]);
  nav.replaceChildren(...four.map(small));
  nav.children[part].setAttribute("aria-pressed", true);
}
function turn(parts, cases) {
  const inside = nav.contains(document.activeElement);
  part = (part + parts + 4) % 4;
  at = (at + cases + list.length) % list.length;
  show();
  if (inside) nav.children[part].focus();
}
function open(i, which, among) {
  list = among.filter((j) => images(j).length);
  [at, part] = [list.indexOf(i), which];
  show();
  box.showModal();
}
const keys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
box.onkeydown = (event) => keys[event.key] && (event.preventDefault(), turn(...keys[event.key]));
on("dialog", (event) => event.target === box && box.close());
on("#close", () => box.close());
on(".big", () => turn(1, 0));
on("#previous", () => turn(0, -1));
on("#next", () => turn(0, 1));
on(".cases tbody", (event) => {
  const button = event.target.closest("button"), i = rows.indexOf(event.target.closest("tr"));
  if (button) open(i, images(i).indexOf(button.firstChild), order);
});

// the worst and the best
function card(i, column, among) {
  const four = images(i), score = rows[i].querySelectorAll(".score")[column].textContent;
  const words = make("span", { className: "words" }, make("b", {}, score), make("code", {}, id(i)));
  if (!four.length) return make("div", {}, make("p", { className: "soft" }, rows[i].cells[1].textContent), words);
  const pair = make("span", { className: "pair" }, copy(four[1]), copy(four[2]));
  return make("button", { onclick: () => open(i, 3, among) }, copy(four[3]), pair, words);
}
select.onchange = () => {
  const column = Number(select.value), sign = columns[column].better === "higher" ? 1 : -1;
  const ranked = order.filter((i) => values[column][i] !== null && !bare(i));
  ranked.sort((a, b) => compare(a, b, column, sign));
  const most = Math.min(6, Math.ceil(ranked.length / 2));
  for (const [name, chosen] of [["#worst", ranked.slice(0, most)], ["#best", ranked.slice(-most).reverse()]]) {
    $(name).replaceChildren(...chosen.map((i) => card(i, column, chosen)));
  }
};
columns.forEach(({ name, any, first }, i) => any && select.append(make("option", { value: i, selected: first }, name)));
$("#strips").hidden = !select.options.length || order.every(bare);
if (!$("#strips").hidden) select.onchange();

// grids that are tables, said to those browsers that take the layout for the meaning
const roles = { TABLE: "table", THEAD: "rowgroup", TBODY: "rowgroup", TR: "row", TD: "cell" };
for (const element of all("table, thead, tbody, tr, td")) element.setAttribute("role", roles[element.tagName]);
for (const head of all("th")) head.setAttribute("role", head.scope === "col" ? "columnheader" : "rowheader");
