(({ data: held, $, make, number, percent, table, chart }) => {
  const { data, rows } = held;
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

  // --- rows ---
  const appendTokens = (target, row, name, kept, first, raw) => {
    const pieces = row[name];
    const ids = row[name + "_ids"];
    const [head, gap] = row.omitted[name] ?? [pieces.length, 0];
    const [start, end] = raw ? [0, Infinity] : kept;
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
      if (!raw && first !== null && place - start === first) token.classList.add("first");
      let width = 1;
      while (pieces[at + width] === null) width++;
      token.title = "id " + ids.slice(at, at + width).join(" ");
      target.append(token);
    });
    if (cut) target.append(make("span", "]", "mark"));
  };

  const side = (row, name, kept, first, raw) => {
    const box = make("div", undefined, name);
    const whole = row["n_" + name];
    const count = kept[1] - kept[0];
    box.append(make("h3", `${name} ${count === whole ? whole : count + " of " + whole} tokens`));
    const text = make("p", undefined, "text");
    text.dir = "auto";
    appendTokens(text, row, name, kept, first, raw);
    box.append(text);
    return box;
  };

  const card = ({ row }, { raw }) => {
    const item = make("li", undefined, "row");
    item.tabIndex = 0;
    item.dataset.row = row.row;
    item.append(make("h3", `row ${row.row} of ${row.split}`));
    const facts = [...row.findings];
    for (const [name, value] of Object.entries(row.columns)) facts.push(`${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`);
    item.append(make("p", facts.join("   "), "facts"));
    item.append(side(row, "prompt", row.kept.prompt_chosen, null, raw));
    const sides = make("div", undefined, "sides");
    for (const name of ["chosen", "rejected"]) sides.append(side(row, name, row.kept[name], row.first_difference, raw));
    item.append(sides);
    return item;
  };

  // --- controls ---
  filterOptions($("split"), [...new Set(rows.map((row) => row.split))]);
  filterOptions($("subset"), [...new Set(known.map((k) => k.subset).filter((name) => name !== null))].sort());
  const boxes = new Map();
  const list = rowList(page, {
    entries: known,
    total: held.total,
    initial: { sort: "row", split: "", subset: "", longer: "", cut: "", raw: false, all: false, findings: [] },
    sorts,
    filters: {
      split: (k, value) => k.row.split === value,
      subset: (k, value) => k.subset === value,
      longer: (k, value) => value === (k.difference > 0 ? "chosen" : k.difference < 0 ? "rejected" : "equal"),
      cut: (k, value) => (value === "yes") === k.cut > 0,
      findings: (k, names, { all }) => (all ? names.every((name) => k.findings.has(name)) : names.some((name) => k.findings.has(name))),
    },
    fields: { search: "value", sort: "value", descending: "checked", split: "value", subset: "value", longer: "value", cut: "value", raw: "checked" },
    staying: ["raw"],
    card,
    opened: (state) => {
      $("all-of").checked = state.all;
      for (const [name, box] of boxes) box.checked = state.findings.includes(name);
    },
  });
  const findingsChanged = () =>
    list.change({ findings: [...boxes].filter(([, box]) => box.checked).map(([name]) => name), all: $("all-of").checked });
  $("all-of").addEventListener("change", findingsChanged);

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
        [`padded, ${fed.batch_size} ${split.rows.lists === undefined ? "pairs" : "lists"} at a time`, number(fed.padded)],
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
  list.open();
})(page);
