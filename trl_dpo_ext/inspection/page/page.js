(({ data: held, $, make, number, percent, table, copyText, chart }) => {
  const { data, rows } = held;
  const PAGE = 25;
  const subset = data.arguments.subset_column ?? "subset";
  const joined = (pieces) => pieces.map((piece) => piece ?? "").join("");

  // --- what is sorted, searched and filtered by, once for each row ---
  const scores = (row) => {
    const c = row.columns;
    const of = (a, b) => (typeof c[a] === "number" && typeof c[b] === "number" ? c[a] - c[b] : null);
    return of("score_chosen", "score_rejected") ?? of("chosen_score", "rejected_score") ?? (typeof c.margin === "number" ? c.margin : null);
  };
  const keptOf = (row, side) => row.kept[side][1] - row.kept[side][0];
  const known = rows.map((row) => ({
    row,
    text: (joined(row.prompt) + "\n" + joined(row.chosen) + "\n" + joined(row.rejected)).toLowerCase(),
    findings: new Set(row.findings),
    cut: row.cut_chosen + row.cut_rejected,
    difference: row.n_chosen - row.n_rejected,
    score: scores(row),
    subset: row.columns[subset] === undefined ? null : String(row.columns[subset]),
  }));
  const sorts = {
    row: (k) => k.row.row,
    prompt: (k) => k.row.n_prompt,
    chosen: (k) => k.row.n_chosen,
    rejected: (k) => k.row.n_rejected,
    "length difference": (k) => k.difference,
    "cut tokens": (k) => k.cut,
    "first difference": (k) => k.row.first_difference,
  };
  if (known.some((k) => k.score !== null)) sorts["score difference"] = (k) => k.score;

  // --- state, kept in the address so that a link opens the same view ---
  const initial = { search: "", sort: "row", descending: false, split: "", subset: "", longer: "", cut: "", raw: false, all: false, findings: [], page: 0 };
  let state = { ...initial };
  const readState = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    state = { ...initial };
    for (const [name, value] of given) {
      if (name === "findings") state.findings = value.split(",").filter(Boolean);
      else if (name === "page") state.page = Math.max(0, parseInt(value, 10) || 0);
      else if (typeof initial[name] === "boolean") state[name] = value === "1";
      else if (name in initial) state[name] = value;
    }
    if (!(state.sort in sorts)) state.sort = "row";
  };
  const writeState = () => {
    const given = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) {
      if (String(value) === String(initial[name])) continue;
      given.set(name, Array.isArray(value) ? value.join(",") : value === true ? "1" : value);
    }
    history.replaceState(null, "", given.toString() ? "#" + given : location.pathname + location.search);
  };

  // --- rows ---
  const selected = () => {
    const wanted = state.search.trim().toLowerCase();
    const byRow = /^row:(\d+)$/.exec(wanted);
    const found = known.filter((k) => {
      if (byRow ? k.row.row !== Number(byRow[1]) : wanted && !k.text.includes(wanted)) return false;
      if (state.split && k.row.split !== state.split) return false;
      if (state.subset && k.subset !== state.subset) return false;
      if (state.longer && state.longer !== (k.difference > 0 ? "chosen" : k.difference < 0 ? "rejected" : "equal")) return false;
      if (state.cut && (state.cut === "yes") !== k.cut > 0) return false;
      if (!state.findings.length) return true;
      return state.all ? state.findings.every((name) => k.findings.has(name)) : state.findings.some((name) => k.findings.has(name));
    });
    const key = sorts[state.sort];
    const sign = state.descending ? -1 : 1;
    return found.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null) || a.row.row - b.row.row;
      return sign * (x - y) || a.row.row - b.row.row;
    });
  };

  const appendTokens = (target, row, name, kept, first) => {
    const pieces = row[name];
    const ids = row[name + "_ids"];
    const [head, gap] = row.omitted[name] ?? [pieces.length, 0];
    const [start, end] = state.raw ? [0, Infinity] : kept;
    let cut = null;
    let shown = 0;
    pieces.forEach((piece, at) => {
      if (at === head && gap) target.append(make("span", ` [... ${gap} tokens are not in this page ...] `, "mark"));
      if (piece === null) return;
      const place = at < head ? at : at + gap;
      if (place < start || place >= end) {
        if (!cut) {
          target.append(make("span", "[cut: ", "mark"));
          cut = make("span", "", "cut");
          target.append(cut);
        }
        cut.append(piece);
        if (place === start - 1) {
          target.append(make("span", "]", "mark"));
          cut = null;
        }
        return;
      }
      const token = make("span", piece, "t");
      if (shown++ % 2) token.classList.add("odd");
      if (/^\s*<[^\s<>]+>$/.test(piece)) token.classList.add("special");
      if (!state.raw && first !== null && place - start === first) token.classList.add("first");
      let width = 1;
      while (pieces[at + width] === null) width++;
      token.title = "id " + ids.slice(at, at + width).join(" ");
      target.append(token);
    });
    if (cut) target.append(make("span", "]", "mark"));
  };

  const side = (row, name, kept, first) => {
    const box = make("div", undefined, name);
    const whole = row["n_" + name];
    const count = kept[1] - kept[0];
    box.append(make("h3", `${name} ${count === whole ? whole : count + " of " + whole} tokens`));
    const text = make("p", undefined, "text");
    text.dir = "auto";
    appendTokens(text, row, name, kept, first);
    box.append(text);
    return box;
  };

  const card = (k) => {
    const { row } = k;
    const item = make("li", undefined, "row");
    item.tabIndex = 0;
    item.dataset.row = row.row;
    item.append(make("h3", `row ${row.row} of ${row.split}`));
    const facts = [...row.findings];
    for (const [name, value] of Object.entries(row.columns)) facts.push(`${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`);
    item.append(make("p", facts.join("   "), "facts"));
    item.append(side(row, "prompt", row.kept.prompt_chosen, null));
    const sides = make("div", undefined, "sides");
    for (const name of ["chosen", "rejected"]) sides.append(side(row, name, row.kept[name], row.first_difference));
    item.append(sides);
    const copy = make("button", "Copy row as JSON");
    copy.type = "button";
    copy.addEventListener("click", () => copyText(JSON.stringify(row), copy));
    item.append(copy);
    return item;
  };

  const draw = () => {
    const found = selected();
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const shown = found.slice(state.page * PAGE, (state.page + 1) * PAGE);
    $("rows").replaceChildren(...shown.map(card));
    $("count").textContent = `${number(found.length)} of the ${number(rows.length)} rows in this page, which holds ${number(rows.length)} of ${number(held.total)} loaded`;
    $("place").textContent = `page ${state.page + 1} of ${pages}`;
    $("previous").disabled = state.page === 0;
    $("next").disabled = state.page === pages - 1;
    writeState();
  };

  // --- controls ---
  const options = (select, values, every) => {
    select.replaceChildren();
    if (every) select.append(new Option(every, ""));
    for (const value of values) select.append(new Option(value, value));
  };
  options($("sort"), Object.keys(sorts));
  options($("split"), [...new Set(rows.map((row) => row.split))], "any");
  const subsets = [...new Set(known.map((k) => k.subset).filter((name) => name !== null))].sort();
  options($("subset"), subsets, "any");
  $("subset-label").hidden = !subsets.length;
  const inputs = { search: "value", sort: "value", descending: "checked", split: "value", subset: "value", longer: "value", cut: "value", raw: "checked" };
  const boxes = new Map();
  const toInputs = () => {
    for (const [name, field] of Object.entries(inputs)) $(name)[field] = state[name];
    $("all-of").checked = state.all;
    for (const [name, box] of boxes) box.checked = state.findings.includes(name);
  };
  for (const [name, field] of Object.entries(inputs)) {
    $(name).addEventListener(name === "search" ? "input" : "change", () => {
      state[name] = $(name)[field];
      if (name !== "raw") state.page = 0;
      draw();
    });
  }
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  const findingsChanged = () => {
    state.findings = [...boxes].filter(([, box]) => box.checked).map(([name]) => name);
    state.all = $("all-of").checked;
    state.page = 0;
    draw();
  };
  $("all-of").addEventListener("change", findingsChanged);
  const turn = (by) => {
    state.page += by;
    draw();
    $("rows").firstElementChild?.scrollIntoView();
  };
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !typing) {
      event.preventDefault();
      $("search").focus();
    } else if (!typing && (event.key === "j" || event.key === "k")) {
      const items = [...$("rows").children];
      const at = items.indexOf(document.activeElement.closest?.(".row")) + (event.key === "j" ? 1 : -1);
      items[Math.max(0, Math.min(items.length - 1, at))]?.focus();
    } else if (!typing && event.key === "ArrowRight" && !$("next").disabled) turn(1);
    else if (!typing && event.key === "ArrowLeft" && !$("previous").disabled) turn(-1);
  });

  // --- statistics ---
  const box = (title, ...content) => {
    const made = make("div", undefined, "card");
    made.append(...(title ? [make("h3", title)] : []), ...content);
    return made;
  };
  const quantiles = ["p5", "p25", "p50", "p75", "p95", "p99", "max"];
  const statistics = () => {
    const target = $("statistics");
    for (const [name, split] of Object.entries(data.splits)) {
      target.append(make("h2", `${name}: ${number(split.rows.kept ?? 0)} of ${number(split.rows.loaded)} rows`));
      if (!split.lengths) continue;
      const cards = make("div", undefined, "cards");
      const lines = [];
      for (const part of ["prompt", "chosen", "rejected", "pair"])
        for (const [when, words] of [["before", "whole"], ["after", "as trained"]]) {
          const summary = split.lengths[part][when];
          lines.push([`${part}, ${words}`, ...quantiles.map((key) => number(summary[key])), summary.mean === null ? "" : summary.mean.toFixed(1)]);
        }
      cards.append(box("Tokens", table(["", ...quantiles, "mean"], lines)));
      cards.append(box(undefined, chart("lengths-" + name)));
      const bias = split.length_bias;
      cards.append(
        box(
          "Which answer is longer",
          table(
            ["", "chosen", "rejected", "equal", "longer wins", "95 %"],
            [["whole", bias.before], ["as trained", bias.after], ...Object.entries(bias.subsets ?? {}).map(([key, value]) => [key, value.before])].map(([words, b]) => [
              words, number(b.longer), number(b.shorter), number(b.equal), percent(b.accuracy), b.interval ? b.interval.map(percent).join(" to ") : "",
            ]),
          ),
        ),
      );
      const fed = split.tokens.fed;
      const facts = [
        ["positions per epoch", number(fed.plain)],
        [`padded, ${fed.batch_size} pairs at a time`, number(fed.padded)],
        ["share_prompt", number(fed.share_prompt)],
        ["reference pass", number(fed.reference_pass)],
        ["scored tokens", number(split.tokens.scored.chosen + split.tokens.scored.rejected)],
        ["distinct prompts", number(split.duplicates.distinct_prompts)],
        ["first difference, median", number(split.difference.first.p50)],
      ];
      if (split.max_length) facts.push([`max_length ${split.max_length.suggested.value}: positions`, number(split.max_length.suggested.plain)]);
      cards.append(box("Fed", table(["", ""], facts)));
      if (split.roles) cards.append(box("Roles: prompt | chosen | rejected", table(["", "rows"], split.roles.sequences.map(([words, count]) => [words, number(count)]))));
      if (split.eos_bos.behind_eos.length) cards.append(box("Behind EOS", table(["", "answers"], split.eos_bos.behind_eos.map(([words, count]) => [JSON.stringify(words), number(count)]))));
      target.append(cards);
    }
    if (data.overlap) {
      const names = Object.keys(data.overlap).filter((key) => key !== "n");
      target.append(box("Test in train", table(["", "exact", "any case"], names.map((key) => [key, number(data.overlap[key].exact), number(data.overlap[key].case_folded)]))));
    }
  };
  const findings = () => {
    const seen = new Map();
    for (const finding of data.findings) {
      const item = make("li", undefined, finding.ignored ? "ignored" : "");
      const label = make("label");
      if (!seen.has(finding.name)) {
        const check = make("input");
        check.type = "checkbox";
        check.value = finding.name;
        check.disabled = !known.some((k) => k.findings.has(finding.name));
        check.addEventListener("change", findingsChanged);
        boxes.set(finding.name, check);
        seen.set(finding.name, check);
        label.append(check, " ");
      }
      label.append(make("span", finding.level, "level " + finding.level), " ", make("b", finding.name), ` ${finding.split}`);
      if (finding.count) label.append(` ${number(finding.count)} (${percent(finding.share)})`);
      item.append(label, ` ${finding.sentence}${finding.ignored ? " [ignored]" : ""}`);
      if (finding.remedy && !finding.ignored) item.append(make("span", "\u2192 " + finding.remedy, "remedy"));
      $("finding-list").append(item);
    }
    if (!data.findings.length) $("finding-list").append(make("li", "No findings."));
  };
  const about = () => {
    const parts = Object.entries(data.arguments).filter(([, value]) => value !== null);
    const words = parts.map(([name, value]) => `${name} ${typeof value === "string" ? value : JSON.stringify(value)}`);
    const versions = Object.entries(data.versions).map(([name, value]) => `${name} ${value}`);
    $("about").textContent = [...words, ...versions, data.date].join(" \u00b7 ");
  };

  about();
  statistics();
  findings();
  $("app").hidden = false;
  const open = () => {
    readState();
    toInputs();
    draw();
  };
  window.addEventListener("hashchange", open);
  open();
})(page);
