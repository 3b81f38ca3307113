"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const count = data.comparisons.length;
  // Longer texts are folded.
  const LONG = 1200;
  const at = id => document.getElementById(id);
  const prefix = `pit_jax ${data.page}`;
  // What one person has done: verdicts by the number of the comparison, from 1, and where they are.
  let name = "", state = {verdicts: {}, place: 0}, whole = false;

  // A browser may keep nothing, as where cookies are turned off.
  const kept = (key, value) => {
    try {
      if (value !== undefined) localStorage.setItem(key, value);
      return localStorage.getItem(key);
    } catch {
      at("unkept").hidden = false;
      return null;
    }
  };
  const save = () => kept(`${prefix} ${name}`, JSON.stringify(state));
  const load = text => {
    let found = null;
    try { found = JSON.parse(text); } catch { /* what isn't ours is as if it weren't there */ }
    state = {verdicts: {}, place: 0};
    for (const [number, verdict] of Object.entries(found?.verdicts ?? {}))
      if (number >= 1 && number <= count && ["A", "B", "tie"].includes(verdict))
        state.verdicts[number] = verdict;
    if (found?.place >= 0 && found.place <= count) state.place = Math.floor(found.place);
  };
  const done = () => Object.keys(state.verdicts).length;
  const missing = () => data.comparisons.findIndex((_, i) => !state.verdicts[i + 1]);

  const fold = section => {
    const text = section.querySelector("div"), more = section.querySelector(".more");
    const long = text.textContent.length > LONG;
    text.classList.toggle("folded", long && !whole);
    more.hidden = !long;
    const size = text.textContent.length.toLocaleString("en");
    more.textContent = whole ? "Fold long texts" : `Show all ${size} characters`;
  };
  const foldAll = () => document.querySelectorAll(".text").forEach(fold);

  const show = focus => {
    const place = state.place, ended = place >= count, verdict = state.verdicts[place + 1];
    at("start").hidden = true;
    at("footer").hidden = false;
    at("comparison").hidden = ended;
    at("verdicts").hidden = ended;
    at("end").hidden = !ended;
    at("status").hidden = false;
    at("place").textContent = ended ? `${count} comparisons` : `Comparison ${place + 1} of ${count}`;
    at("progress").textContent = `${name}: ${done()} judged`;
    at("bar").max = count;
    at("bar").value = done();
    at("back").disabled = place === 0;
    at("on").disabled = ended;
    at("sofar").hidden = ended;
    for (const button of document.querySelectorAll(".download")) button.disabled = !done();
    for (const button of document.querySelectorAll("[data-verdict]"))
      button.setAttribute("aria-pressed", button.dataset.verdict === verdict);
    for (const side of ["a", "b"])
      at(side).classList.toggle("chosen", verdict === side.toUpperCase());
    if (ended) {
      const left = count - done();
      at("ended").textContent = left ? `${left} of ${count} have no verdict yet` : "All are judged. Thank you.";
      at("advice").textContent = left
        ? "You can download what you have, but it counts only once all are judged."
        : "Now download your verdicts, and send the file to whoever asked you. It has your name and your verdicts, and none of the texts.";
      at("missing").hidden = !left;
      document.querySelector("#end .download").classList.toggle("main", !left);
    } else {
      const texts = data.comparisons[place];
      ["prompt", "a", "b"].forEach((id, i) => {
        at(id).querySelector("div").textContent = texts[i];
      });
      foldAll();
    }
    if (focus) {
      scrollTo(0, 0);
      (ended ? at("ended") : at("prompt")).focus({preventScroll: true});
    }
  };
  const go = place => {
    state.place = Math.max(0, Math.min(count, place));
    whole = false;
    save();
    show(true);
  };
  const judge = verdict => {
    if (state.place >= count) return;
    state.verdicts[state.place + 1] = verdict;
    go(state.place + 1);
  };
  const toggle = () => {
    whole = !whole;
    foldAll();
  };

  const quoted = text => `"${text.replaceAll('"', '""')}"`;
  const download = () => {
    const lines = ["comparison,verdict,annotator,page"];
    for (let number = 1; number <= count; number++)
      if (state.verdicts[number])
        lines.push([number, state.verdicts[number], quoted(name), data.page].join(","));
    // The mark at the start tells a spreadsheet that this is UTF-8.
    const file = new Blob(["\ufeff", lines.join("\r\n"), "\r\n"], {type: "text/csv"});
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    const part = done() < count ? "-unfinished" : "";
    link.download = `verdicts-${name.replaceAll(/[^\p{L}\p{N}]+/gu, "_")}${part}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  at("naming").addEventListener("submit", event => {
    event.preventDefault();
    const given = at("name").value.trim().split(/\s+/u).join(" ");
    // Others could be a formula in a spreadsheet.
    at("misnamed").hidden = /^[\p{L}\p{N}]/u.test(given);
    if (!at("misnamed").hidden) return;
    name = given;
    kept(prefix, name);
    load(kept(`${prefix} ${name}`));
    show(true);
  });
  for (const button of document.querySelectorAll("[data-verdict]"))
    button.addEventListener("click", () => judge(button.dataset.verdict));
  for (const more of document.querySelectorAll(".more")) more.addEventListener("click", toggle);
  at("back").addEventListener("click", () => go(state.place - 1));
  at("on").addEventListener("click", () => go(state.place + 1));
  at("missing").addEventListener("click", () => go(missing()));
  for (const button of document.querySelectorAll(".download"))
    button.addEventListener("click", download);
  document.addEventListener("keydown", event => {
    // A key that is held down judges once.
    if (!name || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    const acts = {
      a: () => judge("A"),
      b: () => judge("B"),
      f: toggle,
      arrowleft: () => go(state.place - 1),
      arrowright: () => go(state.place + 1),
    };
    if (data.ties) acts.t = () => judge("tie");
    const act = acts[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  });
  // The same person in another tab.
  addEventListener("storage", event => {
    if (!name || event.key !== `${prefix} ${name}` || !event.newValue) return;
    const place = state.place;
    load(event.newValue);
    state.place = place;
    show(false);
  });

  at("name").value = kept(prefix) ?? "";
  at("start").hidden = false;
  at("name").focus();
})();
