// Filters the examples by kind, agent and text. Without it all of them are there to read.
"use strict";
(() => {
  const section = document.getElementById("examples");
  if (!section) return;
  const all = (selector) => [...section.querySelectorAll(selector)];
  const [filters] = all(".filters");
  const rows = all(".example").map((row) => ({ row, tags: row.dataset.tags.split(" "), text: row.textContent.toLowerCase() }));
  const buttons = all("button[data-tag]");
  const [agent] = all("select");
  const [search] = all("input[type=search]");
  const [count] = all("[data-count]");
  const [none] = all("[data-none]");
  const [more] = all("details.more");
  let tag = "";

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { row, tags, text } of rows) {
      const fits = (!tag || tags.includes(tag)) && (!agent.value || row.dataset.agent === agent.value)
        && words.every((word) => text.includes(word));
      row.hidden = !fits;
      shown += fits;
    }
    const narrowed = tag || agent.value || words.length;
    if (more) {
      if (narrowed) more.open = true;
      more.querySelector("summary").hidden = Boolean(narrowed);
    }
    for (const list of all("ol.examples")) list.hidden = !list.querySelector(".example:not([hidden])");
    count.textContent = `${shown} of ${rows.length} examples shown`;
    none.hidden = shown > 0;
  };

  for (const button of buttons) {
    button.addEventListener("click", () => {
      tag = button.dataset.tag;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      show();
    });
  }
  agent.addEventListener("change", show);
  search.addEventListener("input", show);
  filters.hidden = false;
  show();
})();
