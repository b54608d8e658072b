"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const shapes = {
    lost: "▼", evicted: "◆", rejected: "●", hub: "■",
    kill: "▼", stop: "●", slow: "○", cut: "✕", corrupt: "◆", "kill-hub": "■",
  };
  const meanings = {
    lost: "worker lost", evicted: "worker evicted", rejected: "contribution rejected", hub: "hub",
    kill: "worker killed", stop: "worker stopped", slow: "worker slowed down", cut: "connections cut",
    corrupt: "bit turned over", "kill-hub": "hub killed",
  };
  const charts = [];
  let metric = figures.metric;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const faint = (name) => `color-mix(in srgb, ${colour(name)} 12%, transparent)`;

  const duration = (seconds) => {
    if (seconds == null) return "–";
    if (Math.abs(seconds) < 60) return `${+seconds.toFixed(1)} s`;
    const whole = Math.round(seconds), two = (n) => String(n).padStart(2, "0");
    const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
    return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
  };
  const size = (bytes) => {
    if (bytes == null) return "–";
    const units = ["B", "kB", "MB", "GB", "TB"];
    let unit = 0;
    while (bytes >= 999.5 && unit < 4) { bytes /= 1000; unit++; }
    return `${+bytes.toPrecision(3)} ${units[unit]}`;
  };
  const plain = (value) => value == null ? "–" : value.toLocaleString("en", { maximumSignificantDigits: 5 });
  const tenths = (value) => value == null ? "–" : value.toLocaleString("en", { maximumFractionDigits: 1 });
  const whole = (value) => value == null ? "–" : value.toLocaleString("en", { maximumFractionDigits: 0 });

  // Lines with a shape at their top for faults, triangles at the bottom for those who came back.
  const markers = (place) => ({
    hooks: {
      draw: (u) => {
        const { ctx, bbox } = u, ratio = devicePixelRatio || 1;
        const inside = (mark) => mark[place] >= u.scales.x.min && mark[place] <= u.scales.x.max;
        ctx.save();
        ctx.font = `${12 * ratio}px system-ui, sans-serif`;
        ctx.textAlign = "center";
        ctx.lineWidth = ratio;
        for (const mark of figures.faults.filter(inside)) {
          const x = u.valToPos(mark[place], "x", true);
          ctx.strokeStyle = ctx.fillStyle = colour(mark.kind);
          ctx.globalAlpha = 0.55;
          ctx.setLineDash([4 * ratio, 3 * ratio]);
          ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
          ctx.globalAlpha = 1;
          ctx.fillText(shapes[mark.kind] || "▼", x, bbox.top - 3 * ratio);
        }
        if (place === "time") for (const mark of figures.returns.filter(inside)) {
          ctx.fillStyle = colour("return");
          ctx.fillText("▲", u.valToPos(mark.time, "x", true), bbox.top + bbox.height - 2 * ratio);
        }
        ctx.restore();
      },
      setCursor: (u) => {
        u.note ??= u.over.appendChild(Object.assign(document.createElement("div"), { className: "note" }));
        const near = (mark) => Math.abs(u.valToPos(mark[place], "x") - u.cursor.left);
        const all = place === "time" ? figures.faults.concat(figures.returns) : figures.faults;
        const found = u.cursor.left < 0 ? [] : all.filter((mark) => near(mark) < 7).sort((a, b) => near(a) - near(b));
        u.note.hidden = !found.length;
        if (!found.length) return;
        u.note.textContent = found.slice(0, 3).map((m) => `${duration(m.time)} ${m.kind}: ${m.text}`).join("\n");
        u.note.style.whiteSpace = "pre-line";
        u.note.style.top = "6px";
        const left = u.cursor.left > u.over.clientWidth / 2;
        u.note.style.left = left ? "auto" : `${u.cursor.left + 12}px`;
        u.note.style.right = left ? `${u.over.clientWidth - u.cursor.left + 12}px` : "auto";
      },
    },
  });

  const axis = (format, more) => ({
    stroke: colour("soft"), font: "12px system-ui, sans-serif", values: (_, ticks) => ticks.map(format),
    grid: { stroke: colour("grid"), width: 1 }, ticks: { stroke: colour("line"), width: 1, size: 5 }, ...more,
  });

  const draw = (id, { data, x, y, series, marks, range, height = 250 }) => {
    const target = document.getElementById(id);
    if (!data[0].length) {
      target.innerHTML = '<p class="nothing">Nothing to draw yet.</p>';
      return;
    }
    const few = data[0].length < 40;
    const widest = { size: (_, ticks) => 14 + 7 * Math.max(3, ...(ticks || [""]).map((tick) => tick.length)) };
    charts.push(new uPlot({
      width: target.clientWidth, height, plugins: [markers(marks)],
      padding: [16, 24, 0, 0],
      scales: { x: { time: false, range: range && range.x }, y: { range: range && range.y } },
      axes: [axis(x.format, { size: 34, ...x.axis }), axis(y.format, { ...widest, ...y.axis })],
      legend: { markers: { width: 0, fill: (u, i) => u.series[i].stroke() } },
      cursor: { points: { size: 7 }, drag: { x: true, y: false } },
      series: [
        { label: x.label, value: (_, value) => x.format(value) },
        ...series.map((line) => ({
          width: data[0].length > 600 ? 1 : 2, points: { show: line.paths ? data[0].length < 2 : few, size: 6 }, value: (_, value) => y.format(value), ...line,
          stroke: () => colour(line.stroke), fill: line.fill && (() => faint(line.fill)),
        })),
      ],
    }, data, target));
  };

  const extent = (values) => {
    const least = Math.min(...values), most = Math.max(...values);
    return least === most ? [least - 0.5, most + 0.5] : [least, most];
  };

  const paint = () => {
    charts.splice(0).forEach((chart) => chart.destroy());
    const none = { version: [], time: [], value: [] };
    const shown = figures.metrics[metric] || none;
    document.querySelectorAll("[data-metric]").forEach((element) => { element.textContent = metric; });
    const stepped = uPlot.paths.stepped({ align: 1 });
    const time = { label: "time", format: duration, axis: { incrs: moments, space: 64 } };
    const times = [...shown.time, ...figures.pool[0]];
    const overTime = { x: () => times.length ? [0, Math.max(...times, 0.001)] : [0, 1] };
    const numbers = { x: () => extent(shown.version) };
    const line = [{ label: metric, stroke: "one", fill: shown.value.length > 1 ? "one" : undefined }];
    const fromBelow = { y: (_, least, most) => {
      const room = (most - least || Math.abs(most) || 1) * 0.08;
      return [least >= 0 && least - room < 0 ? 0 : least - room, most + room];
    } };
    draw("by-version", {
      data: [shown.version, shown.value], x: { label: "version", format: whole, axis: { incrs: steps } },
      y: { format: plain }, series: line, marks: "version", range: { ...numbers, ...fromBelow },
    });
    draw("by-time", {
      data: [shown.time, shown.value], x: time, y: { format: plain }, series: line, marks: "time",
      range: { ...overTime, ...fromBelow },
    });
    const most = Math.max(1, ...figures.pool[1], ...figures.pool[2]);
    draw("pool", {
      data: figures.pool, x: time, y: { format: whole, axis: { incrs: steps } }, marks: "time", height: 220,
      range: { ...overTime, y: () => [0, most * 1.15] },
      series: [
        { label: "live", stroke: "four", fill: "four", width: 1, paths: stepped },
        { label: "contributing", stroke: "two", width: 2.5, paths: stepped },
      ],
    });
    if (figures.storm) draw("storm", {
      data: figures.storm, x: time, y: { format: tenths, axis: { incrs: steps } }, marks: "time", height: 300,
      range: { ...overTime, y: () => [0, Math.max(1, ...figures.storm.slice(1).flat()) * 1.15] },
      series: [
        { label: "could work", stroke: "four", fill: "four", width: 1, paths: stepped },
        { label: "contributed", stroke: "one", width: 4, paths: stepped },
        { label: "combined", stroke: "two", width: 2, paths: stepped },
      ],
    });
    draw("bytes", {
      data: figures.bytes, x: time, y: { format: size, axis: { incrs: bytes } }, marks: "time",
      range: { ...overTime, y: (_, least, most) => [0, most * 1.05 || 1] },
      series: [
        { label: "sent", stroke: "three", fill: "three" },
        { label: "received", stroke: "one", dash: [6, 4] },
      ],
    });
  };

  const decades = (from, to) => Array.from({ length: to - from }, (_, i) => 10 ** (from + i));
  const steps = decades(0, 10).flatMap((ten) => [1, 2, 5].map((n) => n * ten));
  const moments = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800]
    .concat([1, 2, 3, 6, 12, 24, 48, 96, 240, 480].map((hours) => hours * 3600));
  const bytes = decades(0, 16).flatMap((ten) => [1, 2, 5].map((n) => n * ten));

  const names = Object.keys(figures.metrics);
  if (names.length > 1) {
    const nav = document.getElementById("metrics");
    nav.hidden = false;
    for (const name of names) {
      const button = nav.appendChild(Object.assign(document.createElement("button"), { textContent: name }));
      const press = () => nav.querySelectorAll("button").forEach((each) => {
        each.setAttribute("aria-pressed", String(each.textContent === metric));
      });
      button.onclick = () => { metric = name; press(); paint(); };
      press();
    }
  }

  const counts = {};
  for (const mark of figures.faults) counts[mark.kind] = (counts[mark.kind] || 0) + 1;
  const entries = Object.entries(counts).map(([kind, n]) => [kind, shapes[kind] || "▼", `${meanings[kind] || kind} (${n})`]);
  if (figures.returns.length) entries.push(["return", "▲", `joined or healed again (${figures.returns.length})`]);
  for (const key of document.querySelectorAll(".key")) for (const [kind, shape, text] of entries) {
    const entry = key.appendChild(document.createElement("span"));
    const mark = entry.appendChild(Object.assign(document.createElement("b"), { textContent: shape }));
    mark.style.color = `var(--${kind})`;
    entry.append(text);
  }

  paint();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  let width = innerWidth, waiting;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(paint, 100);
  });
})();
