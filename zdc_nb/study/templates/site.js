"use strict";
// Light or dark: as the system has it, until somebody chooses.
const root = document.documentElement;
const remembered = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
const system = window.matchMedia("(prefers-color-scheme: dark)");
const paint = () => { root.dataset.theme = remembered() ?? (system.matches ? "dark" : "light"); };
paint();
system.addEventListener("change", paint);

document.addEventListener("DOMContentLoaded", () => {
  document.querySelector("#theme").addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* for this page alone */ }
  });
  const nav = document.querySelector(".stages-nav");
  document.querySelector(".open-nav")?.addEventListener("click", (event) => {
    event.currentTarget.setAttribute("aria-expanded", nav.classList.toggle("shown"));
  });
  // the navigation alone is scrolled to where one is, not the page
  const current = nav?.querySelector("[aria-current]");
  if (current) nav.scrollTop = current.offsetTop - nav.clientHeight / 2;

  const codes = [...document.querySelectorAll("details.code")];
  document.querySelector("#code")?.addEventListener("click", () => {
    const open = !codes.every((part) => part.open);
    for (const part of codes) part.open = open;
  });

  // A link into a part that is folded unfolds it.
  const reveal = (hash) => {
    let target = null;
    try { target = hash && document.getElementById(decodeURIComponent(hash.slice(1))); } catch { /* no name of anything */ }
    if (!target) return;
    for (let part = target.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
    target.scrollIntoView();
  };
  window.addEventListener("hashchange", () => reveal(location.hash));
  // also a second time, when the address stays
  for (const link of document.querySelectorAll('a[href^="#"]')) link.addEventListener("click", () => reveal(link.hash));
  reveal(location.hash);

  // Figures open large, over the page.
  const dialog = document.createElement("dialog");
  dialog.setAttribute("aria-label", "Figure");
  dialog.innerHTML = "<p><span></span><button>Close</button></p><img>";
  dialog.addEventListener("click", (event) => { if (event.target !== dialog.querySelector("span")) dialog.close(); });
  document.body.append(dialog);
  for (const image of document.querySelectorAll("img.zoom")) {
    const open = (event) => {
      event.preventDefault();
      const large = dialog.querySelector("img");
      large.src = image.src;
      large.alt = image.alt;
      dialog.querySelector("span").textContent = image.alt;
      dialog.showModal();
    };
    image.addEventListener("click", open);
    const link = image.closest("a");
    if (!link) {
      image.tabIndex = 0;
      image.setAttribute("role", "button");
    }
    onKey(link ?? image, open);
  }

  for (const table of document.querySelectorAll(".scroll table:not(.values)")) {
    for (const cell of table.querySelectorAll("td")) {
      // a number stays in one line with what is beside it
      if (/^[-+−]?\d/.test(cell.textContent) && cell.textContent.length < 24) cell.style.whiteSpace = "nowrap";
    }
    sortable(table);
  }
});

function onKey(element, act) {
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    act(event);
  });
}

// A click on a heading sorts by its column: numbers by what they are, 3 ± 1 by the 3.
function sortable(table) {
  const body = table.tBodies[0];
  if (!table.tHead || !body) return;
  const span = (cell) => cell.colSpan || 1;
  for (const row of table.tHead.rows) {
    let column = 0;
    for (const cell of row.cells) {
      const place = column;
      column += span(cell);
      if (span(cell) > 1 || !cell.textContent.trim()) continue;
      cell.setAttribute("aria-sort", "none");
      cell.tabIndex = 0;
      const sort = () => {
        const down = cell.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        sortRows(body, place, down ? -1 : 1);
      };
      cell.addEventListener("click", sort);
      onKey(cell, sort);
    }
  }
}

function sortRows(body, column, sign) {
  fillSpans(body);
  // a row that explains the one before stays below it
  const groups = [];
  for (const row of [...body.rows]) {
    if (row.classList.contains("failure") && groups.length) groups.at(-1).push(row);
    else groups.push([row]);
  }
  const key = (group) => (group[0].cells[column]?.textContent ?? "").trim();
  const number = (text) => {
    const time = text.match(/^(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)$/);
    if (time) return ((Number(time[1] ?? 0) * 24 + Number(time[2])) * 60 + Number(time[3])) * 60 + Number(time[4]);
    const found = text.replace("−", "-").replace(/(\d)[ \u202f\u00a0](?=\d{3})/g, "$1").match(/^[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
    return found ? Number(found[0]) : NaN;
  };
  groups.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    const [m, n] = [number(x), number(y)];
    if (Number.isNaN(m) && Number.isNaN(n)) return sign * x.localeCompare(y);
    if (Number.isNaN(m) || Number.isNaN(n)) return Number.isNaN(m) ? 1 : -1; // what has no number comes last
    return sign * (m - n);
  });
  body.append(...groups.flat());
}

// A heading that stands for several rows is written to each of them: they may part.
function fillSpans(body) {
  const rows = [...body.rows];
  rows.forEach((row, index) => {
    [...row.cells].forEach((cell, place) => {
      const count = cell.rowSpan;
      if (count < 2) return;
      cell.rowSpan = 1;
      for (const below of rows.slice(index + 1, index + count)) below.insertBefore(cell.cloneNode(true), below.cells[place] ?? null);
    });
  });
}
