// The page's behaviour: views by the address's hash, a table over columns, a panel for one neuron.
// Data comes as script files, loaded when asked for, because browsers refuse fetch() on file://.
"use strict";

const NS = (() => {
  const info = window.NS_INFO;
  const WORDS = info.words;
  const layers = info.runs.map(() => []);      // [run][layer] -> columns
  const details = info.runs.map(() => ({}));   // [run]["layer/neuron"] -> detail
  const search = info.runs.map(() => null);    // [run] -> rows [layer, neuron, n, text]
  const texts = info.runs.map(() => new Map()); // [run] key -> detected texts
  const triggers = info.runs.map(() => []);    // [run][layer] -> {start, token}: tokens of top triggers
  const words = info.runs.map(() => ({}));     // [run] token -> its text
  const twins = info.runs.map(() => []);       // [run][layer] -> [other run, columns] of each
  const scripts = new Map();
  const NOTHING = [];
  const at = (id) => document.getElementById(id);
  let matches = new Int32Array(0);             // keys (layer * width + neuron) in the table's order
  let current = null;                          // {run, layer, neuron} in the panel
  let table = null;
  let chart = null;

  function load(path) {
    if (!scripts.has(path)) {
      scripts.set(path, new Promise((done, fail) => {
        const script = document.createElement("script");
        script.src = path;
        script.onload = () => { script.remove(); done(); };
        script.onerror = () => { scripts.delete(path); fail(new Error(path + " could not be loaded")); };
        document.head.append(script);
      }));
    }
    return scripts.get(path);
  }

  const ARRAYS = { "|u1": Uint8Array, "<f4": Float32Array, "<f8": Float64Array, "<u2": Uint16Array, "<i4": Int32Array };

  function decode([type, text]) {
    if (Uint8Array.fromBase64) return new ARRAYS[type](Uint8Array.fromBase64(text).buffer);
    const raw = atob(text);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new ARRAYS[type](bytes.buffer);
  }

  // ---- what the data files call

  function layer(run, index, columns) {
    layers[run][index] = Object.fromEntries(Object.entries(columns).map(([k, v]) => [k, decode(v)]));
  }

  function detail(run, index, found) {
    for (const [neuron, entry] of Object.entries(found)) details[run][index + "/" + neuron] = entry;
  }

  function searchable(run, rows) {
    search[run] = rows;
    const width = info.runs[run].neurons;
    for (const [index, neuron, , text] of rows) {
      const key = index * width + neuron;
      if (!texts[run].has(key)) texts[run].set(key, []);
      texts[run].get(key).push(text);
    }
  }

  function triggering(run, index, found) {
    const count = decode(found.count), start = new Uint32Array(count.length + 1);
    for (let i = 0; i < count.length; i++) start[i + 1] = start[i] + count[i];
    triggers[run][index] = { start, token: decode(found.token) };
  }

  function matched(run, index, found) {
    twins[run][index] = Object.entries(found).map(([other, columns]) => (
      [Number(other), Object.fromEntries(Object.entries(columns).map(([k, v]) => [k, decode(v)]))]));
  }

  function texted(run, found) {
    words[run] = found;
  }

  // ---- loading

  const pad = (number, width) => String(number).padStart(width, "0");
  const needLayer = (run, index) => load(`data/r${run}/n${pad(index, 3)}.js`);

  const needTwins = async (run, index) => (info.runs[run].matches || []).includes(index)
    && load(`data/r${run}/m${pad(index, 3)}.js`);

  async function needDetail(run, index, neuron) {
    const key = index + "/" + neuron;
    if (details[run][key]) return details[run][key];
    const piece = layers[run][index].piece[neuron];
    if (piece >= 0) await load(`data/r${run}/d${pad(piece, 5)}.js`);
    else if (location.protocol.startsWith("http") && info.live) await load(`live/${run}/${index}/${neuron}.js`);
    return details[run][key] || null;
  }

  // ---- words

  const byte = (letter) => "\\x" + letter.charCodeAt(0).toString(16).padStart(2, "0");
  const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣")
    .replace(/[\u0000-\u001f\u007f-\u009f]/g, byte);
  const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 0 });
  const percent = (value) => `${Number((100 * value).toPrecision(3))} %`;
  const FEW = 100;  // a share of fewer cases is shown with its 95 % interval

  // A share as "3 of 5 (60 %, 23 to 88 %)", with Wilson's interval.
  function ratio(count, total) {
    const share = count / total, z2 = 1.959964 ** 2, scale = 1 + z2 / total;
    const middle = (share + z2 / (2 * total)) / scale;
    const half = Math.sqrt(z2 * share * (1 - share) / total + (z2 / (2 * total)) ** 2) / scale;
    const whole = (value) => Math.round(100 * value);
    const interval = total < FEW ? `, ${whole(Math.max(0, middle - half))} to ${whole(Math.min(1, middle + half))} %` : "";
    return `${number(count)} of ${number(total)} (${percent(share)}${interval})`;
  }

  const some = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

  // What a neuron's flags say of it: a number, or, of a type, the word for it.
  const flag = (flags, name) => (flags >> info.fields[name].shift) & info.fields[name].mask;
  const word = (flags, name) => info.fields[name].values[flag(flags, name) - 1] || "";
  const kindOf = (flags) => word(flags, "type") || "untyped";

  // How the values of a column are written, by its format; a missing one is a dash.
  const FORMATS = {
    text: (value) => value,
    visible,
    percent,
    count: number,
    nats: (value) => value.toFixed(4),
    ratio: (value, row, column) => ratio(value, row[column.of]),
    link: (value, row) => make("a", { href: address(row.run, row.layer, row.neuron), textContent: value }),
  };
  const written = (column, row) => {
    const value = row[column.field];
    return value === null ? "–" : FORMATS[column.format](value, row, column);
  };

  function classes(flags, run) {
    const found = [];
    if (flag(flags, "never")) found.push(info.runs[run].never);
    for (const n in WORDS) if (flag(flags, "detects_" + n)) found.push(WORDS[n] + " detector");
    if (flag(flags, "suppresses")) found.push("suppresses");
    if (flag(flags, "writes")) found.push(word(flags, "writes") + " neuron");
    if (flag(flags, "positional")) {
      const strength = flag(flags, "strong") ? ", strong" : ", weak";
      found.push("positional, " + kindOf(flags) + (flag(flags, "type") ? strength : ""));
    }
    return found;
  }

  function reasons(run, index, neuron) {
    const { tokens, settings } = info.runs[run];
    const columns = layers[run][index];
    const flags = columns.flags[neuron];
    const activations = columns.activations[neuron];
    const lines = [];
    const smooth = info.runs[run].never !== "dead";  // a gate that is not open still writes
    if (flag(flags, "never")) {
      lines.push(smooth ? `Never open: the gate was above ${info.runs[run].threshold} on none of ${number(tokens)} tokens. With 95 % confidence it`
        + ` is on fewer than 3/tokens = ${(3 / tokens).toPrecision(2)}. A closed gate still writes: this is not dead.`
        : `Dead: activated on none of ${number(tokens)} tokens. With 95 % confidence its frequency is`
        + ` below 3/tokens = ${(3 / tokens).toPrecision(2)}.`);
      return lines;
    }
    lines.push(`${smooth ? "Open" : "Alive: activated"} on ${number(activations)} of ${number(tokens)} tokens,`
      + ` ${percent(columns.frequency[neuron])}.`);
    for (const n of info.runs[run].ngrams) {
      const limit = settings.max_cover[n];
      const cover = columns["cover_" + n][neuron];
      const most = settings.cover_limit ?? Infinity;  // larger numbers were not counted to their end
      const beyond = cover > most ? "more than " : "";
      if (!flag(flags, "counted")) {
        if (n === 1) lines.push("n-grams were not counted in this layer: it has no bitmaps (collect.bitmaps).");
      } else if (flag(flags, "detects_" + n)) {
        lines.push(`Detects ${WORDS[n]}s: ${some(cover, WORDS[n])} (at most ${limit} may) make up`
          + ` ${percent(settings.cover_share)} of its activations, and so do those among them alone that activate`
          + ` it in at least ${percent(settings.detect_rate)} of their occurrences.`);
      } else if (cover === 0) {
        lines.push(`No ${WORDS[n]} detector: nothing that counts activated it (the begin-of-sequence token does not).`);
      } else if (cover > limit) {
        lines.push(`No ${WORDS[n]} detector: it takes ${beyond}${some(Math.min(cover, most), WORDS[n])} to make up`
          + ` ${percent(settings.cover_share)} of its activations; at most ${limit} may.`);
      } else {
        lines.push(`No ${WORDS[n]} detector: ${some(cover, WORDS[n])} make up`
          + ` ${percent(settings.cover_share)} of its activations, but not those alone that activate it in at least`
          + ` ${percent(settings.detect_rate)} of their occurrences.`);
      }
    }
    if (flag(flags, "judged")) {
      lines.push(flag(flags, "suppresses")
        ? "Suppresses its triggers: its update lowers, in the mean, the projections of the tokens that it detects."
        : "Does not suppress its triggers: their mean projection on its update is not below zero.");
    }
    const mi = columns.position_mi[neuron].toFixed(3);
    const bound = settings.positional_mi;
    lines.push(flag(flags, "positional")
      ? `Positional: activation and position share ${mi} nats (more than ${bound}); type: `
        + `${kindOf(flags)}, ${flag(flags, "strong") ? "strong" : "weak"}.`
      : `Not positional: activation and position share ${mi} nats; more than ${bound} would be.`);
    return lines;
  }

  // Which neuron of another run it is, for each other run: a line with a link.
  function matchLines(run, index, neuron) {
    return (twins[run][index] || []).map(([other, columns]) => {
      const match = columns.match[neuron], label = info.runs[other].label;
      if (match < 0) return [`In ${label} nothing can be matched with it: its activations never change.`];
      const link = make("a", { href: address(other, index, match), textContent: `neuron ${match}` });
      return [`In ${label} it is most like `, link, ` of this layer: their activations correlate by`
        + ` ${columns.correlation[neuron].toFixed(2)} (at most ${columns.control[neuron].toFixed(2)} with sequences`
        + ` shuffled)${columns.mutual[neuron] ? ", and the other way round" : ""}.`];
    });
  }

  // ---- building elements; text is only ever set as text

  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    Object.assign(element, properties);
    element.append(...children);
    return element;
  }

  function grid(head, rows) {
    const top = make("tr", {}, ...head.map(({ title, meaning }) => (
      make("th", { textContent: title, title: meaning || "", scope: "col" }))));
    const body = rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, ...[cell].flat()))));
    return make("div", { className: "scroll" }, make("table", { className: "grid" }, top, ...body));
  }

  const address = (run, index, neuron) => "#" + [encodeURIComponent(info.runs[run].label), index, neuron].join("/");

  // ---- the table

  // What is looked for, as text: spaces and line ends may be typed as they are shown.
  const asked = () => at("token").value.replace(/␣/g, " ").replace(/⏎/g, "\n").replace(/⇥/g, "\t").toLowerCase();

  // The tokens whose text holds what is looked for: 1 at their ids; null where there are none.
  function wantedTokens(run, wanted) {
    if (!wanted) return null;
    const found = Object.entries(words[run]).filter(([, text]) => text.toLowerCase().includes(wanted));
    const table = new Uint8Array(1 + Math.max(0, ...found.map(([token]) => Number(token))));
    for (const [token] of found) table[token] = 1;
    return found.length ? table : null;
  }

  function triggered(run, index, neuron, tokens, most) {
    const layer = triggers[run][index];
    if (!layer || !tokens) return NOTHING;
    let found = NOTHING;
    for (let i = layer.start[neuron]; i < layer.start[neuron + 1] && found.length < most; i++) {
      if (tokens[layer.token[i]]) found = [...found, layer.token[i]];
    }
    return found;
  }

  function select() {
    const run = Number(at("run").value);
    const width = info.runs[run].neurons;
    const only = at("layer").value;
    const { mask, value } = info.classes[at("class").value];
    const isWanted = (flags) => (value === null ? flags & mask : (flags & mask) === value);
    const withDetail = at("detailed").checked;
    const wanted = asked();
    let keys = null;
    const tokens = wantedTokens(run, wanted);
    if (wanted) {
      keys = new Set();
      for (const [index, neuron, , text] of search[run] || []) {
        if (text.toLowerCase().includes(wanted)) keys.add(index * width + neuron);
      }
    }
    const found = [];
    layers[run].forEach((columns, index) => {
      if (only !== "" && Number(only) !== index) return;
      for (let neuron = 0; neuron < width; neuron++) {
        if (!isWanted(columns.flags[neuron])) continue;
        if (withDetail && columns.piece[neuron] < 0) continue;
        if (keys && !keys.has(index * width + neuron) && !triggered(run, index, neuron, tokens, 1).length) continue;
        found.push(index * width + neuron);
      }
    });
    matches = Int32Array.from(found);
  }

  // Numbers sort several times faster without a comparing function: each match becomes one number,
  // its value above its place. Values are whole numbers below 2**30, or floats from 0 to 1, whose
  // bits sort as they do and stay below 2**30 too; so there is room for 2**23 places.
  function sort(field, direction) {
    const run = Number(at("run").value);
    const width = info.runs[run].neurons;
    const float = new Float32Array(1), bits = new Uint32Array(float.buffer);
    const value = {
      layer: (key) => Math.floor(key / width),
      neuron: (key) => key % width,
    }[field] || ((key) => layers[run][Math.floor(key / width)][field][key % width]);
    const isFloat = layers[run].some((columns) => columns[field] instanceof Float32Array);
    const ordinal = isFloat ? (v) => { float[0] = v; return bits[0]; } : (v) => v;
    const room = 2 ** Math.ceil(Math.log2(matches.length + 1));
    const numbers = new Float64Array(matches.length), sorted = new Int32Array(matches.length);
    for (let i = 0; i < numbers.length; i++) numbers[i] = ordinal(value(matches[i])) * room + i;
    numbers.sort();
    for (let i = 0; i < numbers.length; i++) sorted[i] = matches[numbers[i] % room];
    matches = sorted;
    if (direction === "desc") matches.reverse();
  }

  function row(run, key, tokens) {
    const width = info.runs[run].neurons;
    const index = Math.floor(key / width), neuron = key % width;
    const columns = layers[run][index];
    const shown = { run, layer: index, neuron };
    for (const { field, known } of info.runs[run].columns.filter((column) => columns[column.field])) {
      shown[field] = !known || flag(columns.flags[neuron], known) ? columns[field][neuron] : null;
    }
    shown.class = classes(columns.flags[neuron], run).join("; ");
    const detects = (texts[run].get(key) || []).slice(0, 12).map(visible).join(" · ");
    const found = triggered(run, index, neuron, tokens, 6).map((token) => visible(words[run][token]));
    shown.detects = detects + (found.length ? `${detects ? "; " : ""}top triggers hold ${found.join(" · ")}` : "");
    return shown;
  }

  function rowsFor(params) {
    select();
    const run = Number(at("run").value);
    const [by] = params.sort || [];
    if (by) sort(by.field, by.dir);
    const start = (params.page - 1) * params.size;
    const tokens = wantedTokens(run, asked());
    const data = Array.from(matches.subarray(start, start + params.size), (key) => row(run, key, tokens));
    at("count").textContent = `${number(matches.length)} neurons`;
    return { data, last_page: Math.max(1, Math.ceil(matches.length / params.size)), last_row: matches.length };
  }

  function columnsOf(run) {
    return info.runs[run].columns.map((column) => ({
      title: column.title, field: column.field, headerTooltip: column.meaning, ...column.layout,
      // text is left to the table, which sets it as text
      ...(column.format === "text" ? {} : { formatter: (cell) => written(column, cell.getData()) }),
    }));
  }

  async function needTable() {
    const run = Number(at("run").value);
    const total = info.runs[run].layers;
    const only = at("layer").value;
    if (info.runs[run].ngrams.length) await load(`data/r${run}/search.js`);
    const wanted = only === "" ? Array.from({ length: total }, (_, i) => i) : [Number(only)];
    const missing = wanted.filter((index) => !layers[run][index]);
    if (missing.length) at("count").textContent = `reading ${some(missing.length, "layer")} …`;
    await Promise.all(missing.map((index) => needLayer(run, index)));
    if (asked()) {
      await load(`data/r${run}/words.js`);
      const held = wanted.filter((index) => index < info.runs[run].trigger_layers);
      if (held.some((index) => !triggers[run][index])) at("count").textContent = "reading triggers …";
      await Promise.all(held.map((index) => load(`data/r${run}/t${pad(index, 3)}.js`)));
    }
    if (!table) {
      table = new Tabulator("#table", {
        ajaxURL: "rows", ajaxRequestFunc: (url, config, params) => Promise.resolve(rowsFor(params)),
        pagination: true, paginationMode: "remote", paginationSize: 25, sortMode: "remote",
        layout: "fitColumns", columns: columnsOf(run), placeholder: "No neuron is like this.",
      });
      table.on("rowClick", (event, clicked) => {
        const d = clicked.getData();
        if (event.target.tagName !== "A") location.hash = address(d.run, d.layer, d.neuron);
      });
      await new Promise((done) => table.on("tableBuilt", done));
    } else {
      await table.setPage(1);
    }
  }

  function fillLayers() {
    const { layers: total } = info.runs[Number(at("run").value)];
    at("layer").replaceChildren(make("option", { value: "", textContent: "all layers" }),
      ...Array.from({ length: total }, (_, i) => make("option", { value: i, textContent: "layer " + i })));
  }

  // ---- the panel

  function ngramTables(entry) {
    const parts = [];
    const detected = new Set((entry.ngrams || []).map((r) => r.n + r.text));
    for (const [n, columns] of Object.entries(info.ngram_columns)) {
      const rows = (entry.triggers || []).filter((r) => r.n === Number(n));
      if (!rows.length) continue;
      const cells = rows.map((r) => {
        const [text, ...others] = columns.map((column) => written(column, r));
        const mark = detected.has(n + r.text) ? [make("span", { className: "detected", textContent: "detected" })] : [];
        return [[text, ...mark], ...others];
      });
      parts.push(make("div", {}, make("h4", { textContent: `Top ${WORDS[n]}s` }), grid(columns, cells)));
    }
    return parts;
  }

  function domains(entry) {
    const columns = info.domain_columns;
    return grid(columns, (entry.domains || []).map((row) => columns.map((column) => written(column, row))));
  }

  function updates(entry) {
    const found = entry.update;
    if (!found) return null;
    const words = (list) => (list || []).map(visible).join(" · ");
    const ranks = (found.triggers || []).map((word, i) => `${visible(word)} (${number(found.trigger_rank[i])})`);
    return grid([{ title: "its update" }, { title: "tokens" }], [
      ["promotes most", words(found.promoted)], ["suppresses most", words(found.suppressed)],
      ["detected tokens, with how many others it suppresses more", ranks.join(" · ")],
    ].filter(([, list]) => list));
  }

  // How much it writes and which way; nothing in runs without sums.
  function writing(entry) {
    if (!entry.writing) return [];
    const rows = entry.writing.map(({ title, value, format, meaning }) => [
      title, value === null ? "–" : format === "percent" ? percent(value).replace(" ", "\u00a0") : String(value), meaning]);
    return [make("h3", { textContent: "How much it writes" }), grid([{ title: "" }, { title: "value" }, { title: "meaning" }], rows)];
  }

  function contexts(entry) {
    if (!entry.contexts) return [make("p", { textContent: "No contexts: this layer has no bitmaps (collect.bitmaps)." })];
    if (!entry.contexts.length) return [make("p", { textContent: "No contexts: it was activated on nothing but the begin-of-sequence token." })];
    return entry.contexts.map((c) => {
      const text = make("span", {}, ...c.text.map((part) => (
        typeof part === "string" ? part : make("mark", { textContent: part[0] }))));
      return make("p", { className: "context" },
        make("small", { textContent: `${c.domain}, sequence ${c.sequence}, position ${c.position}` }), text);
    });
  }

  function draw(entry) {
    const holder = at("curve");
    holder.replaceChildren();
    const { step, values } = entry.curve;
    const x = values.map((_, i) => i * step);
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const ink = dark ? "#e7e8ea" : "#1b1b1f", line = dark ? "#373b44" : "#d9dbe0";
    const colours = ["#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#0072B2", "#999999"];
    const names = Object.keys(entry.domain_curves);
    const data = [x, values, ...names.map((name) => {
      const curve = entry.domain_curves[name];
      return x.map((p) => curve.values[Math.min(curve.values.length - 1, Math.floor(p / curve.step))]);
    })];
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line } };
    chart = new uPlot({
      width: holder.clientWidth, height: 260,
      scales: { x: { time: false }, y: { range: (u, low, high) => [0, Math.max(high * 1.05, 1e-6)] } },
      axes: [{ ...axis, label: "position" }, { ...axis, label: "frequency", size: 80, values: (u, ticks) => ticks.map(percent) }],
      series: [{ label: "position" }, { label: "all", stroke: ink, width: 2, points: { show: false } },
        ...names.map((name, i) => ({ label: name, stroke: colours[i % colours.length], width: 1,
          dash: i < colours.length ? [] : [4, 3], points: { show: false } }))],
    }, data, holder);
  }

  async function show(run, index, neuron) {
    current = { run, layer: index, neuron };
    const panel = at("panel");
    at("name").textContent = `${info.runs[run].label}: layer ${index}, neuron ${neuron}`;
    document.title = at("name").textContent;
    await Promise.all([needLayer(run, index), needTwins(run, index)]);
    const entry = await needDetail(run, index, neuron);
    if (!current || current.run !== run || current.layer !== index || current.neuron !== neuron) return;
    const columns = layers[run][index];
    const tags = classes(columns.flags[neuron], run);
    at("tags").replaceChildren(...(tags.length ? tags : ["not classified"]).map((tag) => (
      make("span", { className: "tag", textContent: tag }))));
    const lines = [...reasons(run, index, neuron).map((line) => [line]), ...matchLines(run, index, neuron)];
    at("why").replaceChildren(...lines.map((parts) => make("li", {}, ...parts)));
    panel.classList.toggle("bare", !entry);
    if (entry) {
      draw(entry);
      at("domains").replaceChildren(domains(entry));
      if (typeof entry.consistency === "number") {
        at("domains").append(make("p", { className: "hint", textContent: "Its type of curve holds in"
          + ` ${percent(entry.consistency)} of the domains with enough sequences.` }));
      }
      at("ngrams").replaceChildren(...ngramTables(entry));
      const words = updates(entry);
      at("updates").replaceChildren(...writing(entry), ...(words ? [make("h3", { textContent: "Promoted and suppressed tokens" }), words] : []));
      at("contexts").replaceChildren(...contexts(entry));
    }
    panel.dataset.shown = `${run}/${index}/${neuron}`;
  }

  function go(step) {
    if (!current) return;
    const { run, layer: index, neuron } = current;
    const { neurons: width, layers: total } = info.runs[run];
    const all = width * total;
    const key = index * width + neuron;
    const listed = matches.length > 1 && Number(at("run").value) === run;
    let target;
    if (step === "random") {
      target = listed ? matches[Math.floor(Math.random() * matches.length)] : Math.floor(Math.random() * all);
    } else if (listed && matches.indexOf(key) >= 0) {
      target = matches[(matches.indexOf(key) + step + matches.length) % matches.length];
    } else {
      target = (key + step + all) % all;
    }
    location.hash = address(run, Math.floor(target / width), target % width);
  }

  // ---- views by address

  function view(name) {
    for (const id of ["overview", "neurons", "panel"]) at(id).hidden = id !== name;
    for (const link of document.querySelectorAll("nav a")) {
      link.toggleAttribute("aria-current", link.hash === "#" + name);
    }
    document.querySelector(".lead").hidden = name !== "overview";
    at("message").textContent = "";
  }

  function fail(error) {
    at("message").textContent = error.message;
  }

  // A link to the list may name the model and the class.
  function filter(wanted) {
    const run = info.runs.findIndex((r) => r.label === wanted.get("run"));
    if (run >= 0 && String(run) !== at("run").value) choose(run);
    at("class").value = wanted.get("class") || "";
    at("token").value = at("layer").value = "";
    at("detailed").checked = false;
  }

  function choose(run) {
    at("run").value = run;
    fillLayers();
    if (table) table.setColumns(columnsOf(run));
  }

  function route() {
    const [place, query] = location.hash.slice(1).split("?");
    const parts = place.split("/");
    if (parts.length === 3) {
      const run = info.runs.findIndex((r) => r.label === decodeURIComponent(parts[0]));
      const index = Number(parts[1]), neuron = Number(parts[2]);
      const shape = info.runs[run];
      const whole = Number.isInteger(index) && Number.isInteger(neuron) && index >= 0 && neuron >= 0;
      if (shape && whole && index < shape.layers && neuron < shape.neurons) {
        view("panel");
        scrollTo(0, 0);
        show(run, index, neuron).catch(fail);
        return;
      }
      view("overview");
      fail(new Error(`There is no neuron ${decodeURIComponent(parts.join("/"))} in this report.`));
      return;
    }
    current = null;
    document.title = info.title;
    if (parts[0] === "neurons") {
      view("neurons");
      if (query) filter(new URLSearchParams(query));
      needTable().catch(fail);
      return;
    }
    view("overview");
    if (parts[0] && at(parts[0])) at(parts[0]).scrollIntoView();
  }

  function keys(event) {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Escape" && current) location.hash = "#neurons";
    if (typing) return;
    if (event.key === "/") { event.preventDefault(); location.hash = "#neurons"; setTimeout(() => at("token").focus(), 50); }
    if (!current) return;
    if (event.key === "ArrowRight" || event.key === "j") go(1);
    if (event.key === "ArrowLeft" || event.key === "k") go(-1);
    if (event.key === "r") go("random");
  }

  function start() {
    at("run").replaceChildren(...info.runs.map((r, i) => make("option", { value: i, textContent: r.label })));
    at("run").parentElement.hidden = info.runs.length < 2;
    fillLayers();
    at("run").addEventListener("change", () => {
      choose(Number(at("run").value));
      needTable().catch(fail);
    });
    for (const id of ["layer", "class", "detailed"]) at(id).addEventListener("change", () => needTable().catch(fail));
    let timer = 0;
    at("token").addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => needTable().catch(fail), 150);
    });
    at("previous").addEventListener("click", () => go(-1));
    at("next").addEventListener("click", () => go(1));
    at("random").addEventListener("click", () => go("random"));
    at("left-out").textContent = info.left_out;
    at("searched").textContent = "Text is looked for in the n-grams that a neuron detects and in single tokens of its"
      + " top triggers" + info.runs.map((r) => ` (${info.runs.length > 1 ? r.label + ": " : ""}the first`
      + ` ${r.trigger_tokens} of a neuron, in the ${r.trigger_layers} layers with bitmaps)`).join(",") + ".";
    addEventListener("hashchange", route);
    addEventListener("keydown", keys);
    addEventListener("resize", () => { if (chart && current) chart.setSize({ width: at("curve").clientWidth, height: 260 }); });
    route();
  }

  return { layer, detail, search: searchable, triggers: triggering, words: texted, matched, problem: (text) => fail(new Error(text)), start };
})();

NS.start();
