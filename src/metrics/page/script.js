"use strict";
(() => {
  // Names and models are input: they become text nodes and attributes, never markup.
  const SVG = "http://www.w3.org/2000/svg";
  const LEVELS = ["nominal", "warning", "critical", "emergency"];
  const PERIOD = 1000, PATIENCE = 4000, KEPT = 600, GAP = 3.5;
  const SPANS = [60, 120, 300, 600];
  const DASH = "–";

  const byId = (id) => document.getElementById(id);

  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  function draw(name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function say(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  // --- numbers as people read them -------------------------------------------------------------

  function digits(value) {
    return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
  }

  function bytes(value) {
    if (value == null) return DASH;
    const units = ["B", "kB", "MB", "GB", "TB"];
    let unit = 0;
    while (value >= 999.5 && unit < units.length - 1) { value /= 1000; unit += 1; }
    return `${unit === 0 ? value : digits(value)} ${units[unit]}`;
  }

  const count = (value) => value == null ? DASH : value.toLocaleString("en");
  const rate = (value) => value == null ? DASH : value.toFixed(1);
  const share = (value) => value == null ? DASH : `${value >= 0.9995 ? 100 : (value * 100).toFixed(1)} %`;
  const seconds = (value) => value < 1 ? `${digits(value * 1000)} ms` : `${digits(value)} s`;

  function clock(age) {
    const whole = Math.round(age);
    if (whole <= 0) return "now";
    return `−${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
  }

  function duration(value) {
    const [days, hours, minutes] = [value / 86400, value / 3600 % 24, value / 60 % 60].map(Math.floor);
    if (days) return `${days} d ${hours} h`;
    if (hours) return `${hours} h ${minutes} min`;
    return minutes ? `${minutes} min` : `${Math.floor(value)} s`;
  }

  /** Round steps below `most`, about `wanted` of them. */
  function steps(most, wanted) {
    const raw = most / wanted, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw) * power;
    return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, index) => index * step);
  }

  // --- charts ------------------------------------------------------------------------------------

  /**
   * A timeline in `host`. `plan` has `stack` and `lines` ({name, key, get(row)}), `limit(row)`, `levels` (a band of
   * pressure below), `format`, `least` (of the scale's top), `top` (a fixed one), `empty` (what is said without values).
   */
  function timeline(host, plan) {
    const legend = make("ul", { class: "legend" });
    const svg = draw("svg", { role: "img", tabindex: "0", height: plan.height });
    const heard = make("p", { class: "heard", "aria-live": "polite" });
    host.append(legend, svg, heard);
    const outputs = [];
    const when = make("li", { class: "when" }, "now");
    const entry = (name, key, style, get) => {
      const value = make("b", {}, DASH);
      const item = make("li", {}, make("span", { class: `key ${style} ${key}` }), `${name} `, value);
      legend.append(item);
      outputs.push({ name, item, value, get });
    };
    for (const { name, key, get } of plan.lines) entry(name, key, key === "anon" ? "dashed" : "thin", get);
    if (plan.limit) entry("limit", "limit", "dashed", plan.limit);
    for (const { name, key, get } of plan.stack) entry(name, key, "", get);
    legend.append(when);

    let rows = [], cursor = null, place = () => null;

    function readout() {
      const row = cursor ?? rows.at(-1);
      const known = outputs.map(({ get }) => rows.some((row) => get(row) != null));
      outputs.forEach(({ item, value, get }, index) => {
        const number = row ? get(row) : null;
        say(value, number == null ? DASH : plan.format(number));
        // What this machine does not know is not listed, where anything is.
        item.hidden = !known[index] && known.includes(true);
      });
      const text = row && cursor ? clock(rows.at(-1).t - row.t) : "now";
      say(when, plan.levels && row ? `${text}, ${LEVELS[row.level]}` : text);
      return outputs.filter(({ item }) => !item.hidden).map(({ name, value }) => `${name} ${value.textContent}`).join(", ");
    }

    function render() {
      const width = host.clientWidth;
      if (!width) return;
      const text = readout();
      const left = plan.left ?? 54, right = 10, head = 8, foot = plan.levels ? 40 : 20;
      const height = plan.height, bottom = height - foot, wide = Math.max(width - left - right, 10);
      const last = rows.at(-1)?.t ?? 0, age = last - (rows[0]?.t ?? 0);
      const span = SPANS.find((span) => span >= age) ?? SPANS.at(-1);
      const x = (row) => left + wide * (1 - (last - row.t) / span);
      place = (at) => rows.reduce((best, row) => best && Math.abs(x(best) - at) <= Math.abs(x(row) - at) ? best : row, null);

      const sums = rows.map((row) => plan.stack.reduce((sum, { get }) => sum + (get(row) ?? 0), 0));
      const values = rows.flatMap((row) => plan.lines.map(({ get }) => get(row)).filter((value) => value != null));
      let most = values.concat(sums).reduce((one, other) => Math.max(one, other), 0);
      const limit = plan.limit ? rows.reduceRight((found, row) => found ?? plan.limit(row), null) : null;
      // A limit far above would press everything else to the ground.
      const inside = limit != null && limit <= most * 2.5;
      most = plan.top ?? Math.max(most, inside ? limit : 0, plan.least) * (limit == null || inside ? 1.08 : 1.2);
      const y = (value) => bottom - (bottom - head) * Math.min(value / most, 1);

      const parts = [draw("title", {}, `${plan.title}: ${text}`)];
      if (plan.levels) {
        for (const [from, to, level] of runs(rows)) {
          const at = Math.max(x(from), left), until = Math.max(x(to), at + 1);
          if (level) parts.push(draw("rect", { class: `tint level-${level}`, x: at, y: head, width: until - at, height: bottom - head }));
          parts.push(draw("rect", { class: `band level-${level}`, x: at, y: bottom + 9, width: until - at, height: 9 }));
        }
        parts.push(draw("text", { x: left - 8, y: bottom + 17, "text-anchor": "end" }, "pressure"));
      }
      for (const step of steps(plan.top ?? most, plan.height > 200 ? 6 : 4)) {
        parts.push(draw("line", { class: step ? "gridline" : "baseline", x1: left, x2: left + wide, y1: y(step), y2: y(step) }));
        parts.push(draw("text", { x: left - 8, y: y(step) + 4, "text-anchor": "end" }, plan.tick(step)));
      }
      const ticks = wide < 420 ? 2 : span > 120 ? 5 : 6;
      for (let tick = 0; tick <= ticks; tick += 1) {
        const at = left + wide * (1 - tick / ticks);
        const anchor = tick === 0 ? "end" : tick === ticks ? "start" : "middle";
        parts.push(draw("text", { x: at, y: height - 4, "text-anchor": anchor }, clock(span * tick / ticks)));
      }
      const base = rows.map(() => 0);
      for (const { key, get } of plan.stack) {
        const lower = base.slice();
        rows.forEach((row, index) => { base[index] += get(row) ?? 0; });
        if (base.every((value, index) => value === lower[index])) continue;
        for (const [from, to] of pieces(rows, () => true)) {
          const up = rows.slice(from, to).map((row, index) => `${point(x(row))},${point(y(base[from + index]))}`);
          const down = rows.slice(from, to).map((row, index) => `${point(x(row))},${point(y(lower[from + index]))}`).reverse();
          parts.push(draw("path", { class: `fill ${key}`, d: `M${up.join("L")}L${down.join("L")}Z` }));
        }
      }
      if (inside) parts.push(draw("line", { class: "stroke limit", x1: left, x2: left + wide, y1: y(limit), y2: y(limit) }));
      for (const { key, get } of plan.lines) {
        for (const [from, to] of pieces(rows, (row) => get(row) != null)) {
          const points = rows.slice(from, to).map((row) => `${point(x(row))},${point(y(get(row)))}`);
          // A single point would not show.
          if (points.length === 1) points.push(points[0]);
          parts.push(draw("path", { class: `stroke ${key}`, d: `M${points.join("L")}` }));
        }
      }
      if (limit != null && !inside) {
        parts.push(draw("text", { x: left + wide, y: head + 8, "text-anchor": "end" }, `limit ${plan.format(limit)}, above the chart`));
      }
      if (values.length === 0 && sums.every((sum) => sum === 0)) {
        parts.push(draw("text", { class: "empty", x: left + wide / 2, y: (head + bottom) / 2, "text-anchor": "middle" }, plan.empty));
      }
      if (cursor && rows.includes(cursor)) {
        parts.push(draw("line", { class: "cursor", x1: x(cursor), x2: x(cursor), y1: head, y2: bottom }));
      }
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      const highest = plan.levels && rows.length ? `; pressure at most ${LEVELS[Math.max(...rows.map((row) => row.level))]}` : "";
      svg.setAttribute("aria-label", `${plan.title} over the last ${duration(Math.min(age, span))}${highest}; now: ${text}`);
      svg.replaceChildren(...parts);
    }

    const move = (row) => { cursor = row; render(); };
    svg.addEventListener("pointermove", (event) => move(place(event.clientX - svg.getBoundingClientRect().left)));
    svg.addEventListener("pointerleave", () => move(null));
    svg.addEventListener("blur", () => move(null));
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30, Home: -KEPT, End: KEPT }[event.key];
      if (event.key === "Escape") move(null);
      if (!step || !rows.length) return;
      event.preventDefault();
      const index = cursor ? rows.indexOf(cursor) : rows.length - 1;
      move(rows[Math.min(Math.max(index + step, 0), rows.length - 1)]);
      say(heard, `${when.textContent}: ${readout()}`);
    });
    new ResizeObserver(render).observe(host);
    return (now) => {
      rows = now;
      if (cursor && !rows.includes(cursor)) cursor = null;
      render();
    };
  }

  const point = (value) => Math.round(value * 10) / 10;

  /** Stretches of rows without a gap for which `has` holds, as [from, to). */
  function pieces(rows, has) {
    const found = [];
    let from = null;
    rows.forEach((row, index) => {
      const joined = has(row) && from != null && row.t - rows[index - 1].t <= GAP;
      if (!joined) {
        if (from != null) found.push([from, index]);
        from = has(row) ? index : null;
      }
    });
    if (from != null) found.push([from, rows.length]);
    return found;
  }

  /** Stretches of the same pressure as [first row, row after, level]. */
  function runs(rows) {
    const found = [];
    rows.forEach((row, index) => {
      const run = found.at(-1);
      if (run && run[2] === row.level && row.t - rows[index - 1].t <= GAP) run[1] = row;
      else {
        if (run && row.t - rows[index - 1].t <= GAP) run[1] = row;
        found.push([row, row, row.level]);
      }
    });
    return found;
  }

  // --- tables --------------------------------------------------------------------------------------

  /** Columns are [title, of an item → text or number, format, class]. */
  function table(id, empty, columns) {
    const element = byId(id), head = make("tr");
    for (const [title, , , kind] of columns) {
      head.append(make("th", { scope: "col", class: kind === "text" || kind === "text name" ? "text" : "" }, title));
    }
    element.tHead.append(head);
    return (items) => {
      const rows = items.map((item) => make("tr", {}, ...columns.map(([title, get, format, kind = ""]) => {
        const value = get(item);
        const mood = value === 0 ? " zero" : kind === "bad" ? " bad" : "";
        return make("td", { class: kind.replace("bad", "") + mood, "data-label": title }, make("span", {}, format(value)));
      })));
      const none = make("tr", {}, make("td", { class: "none", colspan: columns.length }, empty));
      element.tBodies[0].replaceChildren(...(rows.length ? rows : [none]));
    };
  }

  const hits = ({ pool }) => pool.requests ? pool.hits / pool.requests : null;
  const same = (value) => value;

  const streams = table("streams", "no streams", [
    ["stream", (one) => one.name, same, "text name"],
    ["model", (one) => one.model, same, "text"],
    ["frames/s", (one) => one.rates?.in, rate],
    ["inferred/s", (one) => one.rates?.inferred, rate],
    ["skipped: interval", (one) => one.skipped[0], count],
    ["skipped: overload", (one) => one.skipped[1], count],
    ["skipped: pressure", (one) => one.skipped[2], count],
    ["failed", (one) => one.failed, count, "bad"],
    ["queue", (one) => one.queue, count],
    ["detections", (one) => one.detections, count],
    ["pool hits", hits, share],
  ]);

  const engines = table("engines", "no engines", [
    ["model", (one) => one.model, same, "text name"],
    ["device", (one) => one.device, same, "text"],
    ["streams", (one) => one.streams, count],
    ["waiting", (one) => one.waiting, count],
    ["batches", (one) => one.batches, count],
    ["frames a batch", (one) => one.batches ? one.frames / one.batches : null, rate],
    ["batch limit", (one) => one.batch_limit, count],
    ["slots", (one) => one.slots, count],
    ["callers", (one) => one.callers, count],
    ["last run", (one) => one.last_run, seconds],
    ["loading added", (one) => one.bytes, bytes],
  ]);

  function tile(title) {
    const value = make("dd"), note = make("dd", { class: "small" });
    const box = make("div", {}, make("dt", {}, title), value, note);
    byId("tiles").append(box);
    return (text, more) => {
      box.hidden = text == null;
      say(value, text ?? "");
      say(note, more ?? "");
    };
  }

  const tiles = {
    resident: tile("Resident memory"), reserved: tile("Reserved"), gpu: tile("GPU memory"),
    heap: tile("Heap"), system: tile("System"), rate: tile("Frames per second"), hits: tile("Pool hit rate"),
  };

  // --- all of it -----------------------------------------------------------------------------------

  const axis = (value) => value === 0 ? "0" : bytes(value).replace(/\.0+ |(\.\d*[1-9])0+ /, "$1 ");
  const rateChart = timeline(byId("rate"), {
    title: "Frames per second", height: 170, stack: [], least: 1, format: rate, tick: (value) => String(+value.toFixed(2)), left: 40,
    empty: "no frames yet",
    lines: [
      { name: "in", key: "in", get: (row) => row.rates?.in },
      { name: "inferred", key: "inferred", get: (row) => row.rates?.inferred },
    ],
  });
  const reuseChart = timeline(byId("reuse"), {
    title: "Pool hit rate", height: 170, stack: [], top: 1, format: share, tick: (value) => `${Math.round(value * 100)} %`, left: 48,
    empty: "no buffers counted yet",
    lines: [{ name: "hits", key: "hits", get: (row) => row.rates?.hits }],
  });
  const gpuChart = timeline(byId("gpu"), {
    title: "GPU memory", height: 170, stack: [], least: 1e6, format: bytes, tick: axis, left: 58, empty: "no GPU",
    lines: [
      { name: "this process", key: "in", get: (row) => row.own },
      { name: "all processes", key: "anon", get: (row) => row.gpu },
    ],
  });

  // Waits for the consumers' names.
  let memoryChart = null;

  function drawMemory(consumers) {
    memoryChart ??= timeline(byId("memory"), {
      title: "Memory", height: 300, levels: true, least: 1e6, format: bytes, tick: axis, left: 58, empty: "no figures yet",
      limit: (row) => row.limit,
      lines: [
        { name: "resident", key: "rss", get: (row) => row.rss },
        { name: "anonymous", key: "anon", get: (row) => row.anon || null },
      ],
      stack: consumers.map((name, index) => ({ name, key: name, get: (row) => row.res[index] })),
    });
    memoryChart(rows);
  }

  const total = (values) => values.reduce((sum, value) => sum + (value ?? 0), 0);
  let rows = [], start = null;

  function show(status) {
    if (status.start !== start) {
      // Another process, or the server of this one anew.
      rows = [];
      start = status.start;
    }
    const newest = rows.at(-1)?.n ?? -1;
    rows = rows.concat(status.history.filter((row) => row.n > newest)).slice(-KEPT);
    const { memory } = status, now = rows.at(-1);

    drawMemory(status.consumers);
    rateChart(rows);
    reuseChart(rows);
    byId("gpu-section").hidden = !memory.gpus.length;
    if (memory.gpus.length) gpuChart(rows);
    byId("gpus").replaceChildren(...memory.gpus.map(({ index, own, used, total }) =>
      make("li", {}, `GPU ${index}: ${bytes(own)} by this process, ${bytes(used)} of ${bytes(total)} by all`)));

    const limit = memory.limit;
    tiles.resident(bytes(memory.resident), limit == null ? "no limit" : `${share(memory.resident / limit)} of ${bytes(limit)}`);
    tiles.reserved(bytes(total(memory.reserved)), memory.budget == null ? "no memory-budget" : `budget ${bytes(memory.budget)}`);
    const own = memory.gpus.map((gpu) => gpu.own).filter((value) => value != null);
    tiles.gpu(memory.gpus.length ? bytes(own.length ? total(own) : null) : null,
      `of ${bytes(total(memory.gpus.map((gpu) => gpu.total)))}`);
    tiles.heap(memory.heap ? bytes(memory.heap.used) : null, memory.heap && `${bytes(memory.heap.free)} more is free`);
    tiles.system(memory.system ? bytes(memory.system.available) : null,
      memory.system && `available of ${bytes(memory.system.total)}`);
    tiles.rate(rate(now?.rates?.in), `${rate(now?.rates?.inferred)} inferred`);
    const pools = status.streams.map(({ pool }) => pool);
    const requests = total(pools.map((pool) => pool.requests));
    tiles.hits(requests ? share(total(pools.map((pool) => pool.hits)) / requests) : DASH,
      requests ? `of ${count(requests)} frames` : "no buffers counted yet");
    streams(status.streams);
    engines(status.engines);

    const pressure = byId("pressure");
    say(pressure, `pressure: ${LEVELS[memory.level]}`);
    pressure.className = `chip level-${memory.level}`;
    const lasted = now ? `, running for ${duration(now.t)}` : "";
    say(byId("about"), `${status.version}, process ${status.pid}${lasted}`);
    byId("main").setAttribute("aria-busy", "false");
  }

  function connected(live) {
    const chip = byId("connection");
    say(chip, live ? "live" : "no answer, trying again…");
    chip.className = `chip quiet ${live ? "live" : "lost"}`;
    document.body.classList.toggle("stale", !live);
  }

  async function poll() {
    try {
      const since = start == null ? 0 : (rows.at(-1)?.n ?? -1) + 1;
      let status = await ask(since);
      // Numbers of an earlier life say nothing of this one.
      if (start != null && status.start !== start && since > 0) status = await ask(0);
      show(status);
      connected(true);
    } catch (error) {
      console.warn(error);
      connected(false);
    }
    setTimeout(poll, PERIOD);
  }

  async function ask(since) {
    const answer = await fetch(`status.json?since=${since}`, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    return answer.json();
  }

  poll();
})();
