// A list of rows that is searched, filtered, sorted, and turned over; the address holds its state, so that a link opens
// the same view. Keys: / searches, j and k go from row to row, the arrows turn pages.
//
// entries: { row: { row: number }, text: lower-case text that is searched, ... }
// sorts: name -> (entry) => number or null; filters: name -> (entry, value, state) => boolean, for values that are set
// fields: name of an input = name in the state -> "value" or "checked"; staying: fields that do not turn to page 1
const rowList = ({ $, make, number, copyText }, { entries, total, initial, sorts, filters, fields, staying = [], card, opened }) => {
  const PAGE = 25;
  const start = { search: "", descending: false, page: 0, ...initial };
  let state = { ...start };
  const isSet = (value) => (Array.isArray(value) ? value.length > 0 : Boolean(value));

  const readState = () => {
    state = { ...start };
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      if (!(name in start)) continue;
      if (Array.isArray(start[name])) state[name] = value.split(",").filter(Boolean);
      else if (name === "page") state.page = Math.max(0, parseInt(value, 10) || 0);
      else state[name] = typeof start[name] === "boolean" ? value === "1" : value;
    }
    if (!(state.sort in sorts)) state.sort = start.sort;
  };
  const writeState = () => {
    const given = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) {
      if (String(value) === String(start[name])) continue;
      given.set(name, Array.isArray(value) ? value.join(",") : value === true ? "1" : value === false ? "0" : value);
    }
    history.replaceState(null, "", given.toString() ? "#" + given : location.pathname + location.search);
  };

  const selected = () => {
    const wanted = state.search.trim().toLowerCase();
    const byRow = /^row:(\d+)$/.exec(wanted);
    const active = Object.entries(filters).filter(([name]) => isSet(state[name]));
    const found = entries.filter((entry) => {
      if (byRow ? entry.row.row !== Number(byRow[1]) : wanted && !entry.text.includes(wanted)) return false;
      return active.every(([name, keeps]) => keeps(entry, state[name], state));
    });
    const key = sorts[state.sort];
    const sign = state.descending ? -1 : 1;
    return found.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null) || a.row.row - b.row.row;
      return sign * (x - y) || a.row.row - b.row.row;
    });
  };

  const withCopy = (item, row) => {
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
    $("rows").replaceChildren(...shown.map((entry) => withCopy(card(entry, state), entry.row)));
    $("count").textContent = `${number(found.length)} of the ${number(entries.length)} rows in this page, which holds ${number(entries.length)} of ${number(total)} loaded`;
    $("place").textContent = `page ${state.page + 1} of ${pages}`;
    $("previous").disabled = state.page === 0;
    $("next").disabled = state.page === pages - 1;
    writeState();
  };
  const change = (changes, stays = false) => {
    Object.assign(state, changes);
    if (!stays) state.page = 0;
    draw();
  };

  const select = $("sort");
  select.replaceChildren(...Object.keys(sorts).map((name) => new Option(name, name)));
  for (const [name, field] of Object.entries(fields)) {
    $(name).addEventListener(name === "search" ? "input" : "change", () => change({ [name]: $(name)[field] }, staying.includes(name)));
  }
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  const turn = (by) => {
    state.page += by;
    draw();
    $("rows").firstElementChild?.scrollIntoView();
  };
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
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

  const open = () => {
    readState();
    for (const [name, field] of Object.entries(fields)) $(name)[field] = state[name];
    opened?.(state);
    draw();
  };
  window.addEventListener("hashchange", open);
  return { open, change };
};
// What a filter offers; without values it is hidden, in the label around it.
const filterOptions = (select, values) => {
  select.replaceChildren(new Option("any", ""), ...values.map((value) => new Option(value, value)));
  select.closest("label").hidden = !values.length;
};
