(({ data: held, $, make, number }) => {
  const { rows } = held;
  const SIDES = ["chosen", "rejected"];
  const signed = (value, digits) => (value === null ? "-" : (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(digits));
  const known = rows.map((row) => ({
    row,
    text: [row.prompt, row.chosen, row.rejected].map((pieces) => pieces.join("")).join("\n").toLowerCase(),
    difference: row.tokens[0] - row.tokens[1],
    label: row.margin === null ? "" : row.margin > 0 ? "agrees" : row.margin < 0 ? "disagrees" : "tie",
  }));
  const sorts = {
    margin: (k) => k.row.margin,
    row: (k) => k.row.row,
    "reward of chosen": (k) => k.row.rewards[0],
    "reward of rejected": (k) => k.row.rewards[1],
    "length difference": (k) => k.difference,
  };
  if (rows.some((row) => row.gap !== null)) sorts["score difference"] = (k) => k.row.gap;

  // --- shading: the value that 95 % of the tokens stay below has the full color ---
  const sizes = rows.flatMap((row) => SIDES.flatMap((side) => row.ratios[side] ?? [])).map(Math.abs).sort((a, b) => a - b);
  const full = Math.max(0.05, sizes[Math.floor(sizes.length * 0.95)] ?? 1);
  const token = (piece, value, shown) => {
    const made = make("span", piece, "t");
    if (value === undefined || value === null) return made;
    made.classList.add(value < 0 ? "less" : "more");
    made.style.setProperty("--weight", String(Math.round(70 * Math.min(1, Math.abs(value) / full))));
    made.title = signed(value, 3);
    if (shown) made.append(make("sub", signed(value, 2)));
    return made;
  };

  const side = (row, name, title, shown) => {
    const box = make("div", undefined, name);
    box.append(make("h3", title));
    const text = make("p", undefined, "text");
    text.dir = "auto";
    const [head, gap] = row.omitted[name] ?? [-1, 0];
    row[name].forEach((piece, at) => {
      if (at === head) text.append(make("span", ` [... ${gap} ${row.tokens[0] ? "tokens" : "words"} are not in this page ...] `, "mark"));
      text.append(token(piece, row.ratios[name]?.[at], shown));
    });
    box.append(text);
    return box;
  };

  const card = ({ row, label }, { values }) => {
    const item = make("li", undefined, "row");
    item.tabIndex = 0;
    item.dataset.row = row.row;
    item.append(make("h3", `row ${row.row}: ${row.margin === null ? row.status : `margin ${signed(row.margin, 3)}, ${label}`}`));
    const facts = [`status ${row.status}`];
    if (row.subset !== null) facts.push(`subset ${row.subset}`);
    if (row.gap !== null) facts.push(`score difference ${signed(row.gap, 3)}`);
    item.append(make("p", facts.join("   "), "facts"));
    item.append(side(row, "prompt", "prompt", false));
    const sides = make("div", undefined, "sides");
    SIDES.forEach((name, at) => {
      const reward = row.rewards[at] === null ? "" : `, reward ${signed(row.rewards[at], 3)}`;
      sides.append(side(row, name, `${name}: ${number(row.tokens[at])} ${row.tokens[at] === 1 ? "token" : "tokens"}${reward}`, values));
    });
    item.append(sides);
    return item;
  };

  // --- controls ---
  const present = (values) => [...new Set(values.filter((value) => value !== null))].sort();
  filterOptions($("subset"), present(rows.map((row) => row.subset)));
  filterOptions($("status"), present(rows.map((row) => row.status)));
  if (sizes.length) {
    const key = (value) => {
      const made = token(signed(value, 2), value, false);
      made.classList.add("key-tint");
      return made;
    };
    const what = held.free ? "log-prob of each token" : "log-ratio of each token, policy to reference";
    $("scale").append(`Color: ${what} `, key(-full), " ", key(-full / 2), " ", key(full / 2), " ", key(full), " nats; less is underlined.");
  }
  $("app").hidden = false;
  rowList(page, {
    entries: known,
    total: held.total,
    initial: { sort: "margin", subset: "", status: "", label: "", longer: "", values: false },
    sorts,
    filters: {
      subset: (k, value) => k.row.subset === value,
      status: (k, value) => k.row.status === value,
      label: (k, value) => k.label === value,
      longer: (k, value) => value === (k.difference > 0 ? "chosen" : k.difference < 0 ? "rejected" : "equal"),
    },
    fields: { search: "value", sort: "value", descending: "checked", subset: "value", status: "value", label: "value", longer: "value", values: "checked" },
    staying: ["values"],
    card,
  }).open();
})(page);
