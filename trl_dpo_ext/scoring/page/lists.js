(({ data: held, $, make, number }) => {
  const { rows } = held;
  const signed = (value, digits) => (value === null ? "-" : (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(digits));
  const known = rows.map((row) => ({
    row,
    text: [row.prompt, ...row.completions.map((each) => each.text)].join("\n").toLowerCase(),
  }));
  const sorts = {
    "tau-b": (k) => k.row.tau,
    row: (k) => k.row.row,
    "place of the best": (k) => k.row.place,
    "spread of rewards": (k) => k.row.spread,
    "number of completions": (k) => k.row.completions.length,
  };

  const text = (words) => {
    const made = make("p", words, "text");
    made.dir = "auto";
    return made;
  };
  const answer = (each) => {
    const item = make("li", undefined, each.best ? "answer best" : "answer");
    const facts = [each.reward === null ? "no reward" : `reward ${signed(each.reward, 3)}`];
    if (each.given !== null) facts.push(`${each.given}, place ${each.given_place} by the data`);
    facts.push(`${number(each.tokens)} ${each.tokens === 1 ? "token" : "tokens"}`, each.where);
    const line = make("p", facts.join(" \u00b7 "), "facts");
    if (each.best) line.append(" ", make("span", "best by the data", "level note"));
    item.append(line, text(each.text));
    return item;
  };
  const card = ({ row }) => {
    const item = make("li", undefined, "row");
    item.tabIndex = 0;
    item.dataset.row = row.row;
    const agreed = row.tau === null ? "" : `, tau-b ${signed(row.tau, 2)}`;
    item.append(make("h3", `row ${row.row}: ${row.label}${agreed}`));
    if (row.subset !== null) item.append(make("p", `subset ${row.subset}`, "facts"));
    const prompt = make("div", undefined, "prompt");
    prompt.append(text(row.prompt));
    const list = make("ol", undefined, "answers");
    list.append(...row.completions.map(answer));
    item.append(prompt, list);
    return item;
  };

  const present = (values) => [...new Set(values.filter((value) => value !== null))];
  filterOptions($("subset"), present(rows.map((row) => row.subset)).sort());
  filterOptions($("best"), present(rows.map((row) => row.label)).sort());
  filterOptions($("many"), present(rows.map((row) => row.completions.length)).sort((a, b) => a - b).map(String));
  $("app").hidden = false;
  rowList(page, {
    entries: known,
    total: held.total,
    initial: { sort: "tau-b", subset: "", best: "", many: "" },
    sorts,
    filters: {
      subset: (k, value) => k.row.subset === value,
      best: (k, value) => k.row.label === value,
      many: (k, value) => String(k.row.completions.length) === value,
    },
    fields: { search: "value", sort: "value", descending: "checked", subset: "value", best: "value", many: "value" },
    card,
  }).open();
})(page);
