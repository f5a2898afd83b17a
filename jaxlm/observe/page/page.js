"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const place = document.getElementById("charts");
  const left = 58, right = 14, top = 10, bottom = 24;
  const state = { "log-x": false, "log-y": false, smooth: false };
  let drawn = [];

  const node = (name, attributes = {}, text) => {
    const svg = ["svg", "g", "path", "line", "rect", "circle", "text", "title"].includes(name);
    const made = svg
      ? document.createElementNS("http://www.w3.org/2000/svg", name)
      : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const short = (v) => {
    const size = Math.abs(v);
    for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (size >= unit) return +(v / unit).toPrecision(4) + letter;
    return size > 0 && size < 0.001 ? v.toExponential(2).replace(/\.?0+e/, "e") : String(+v.toPrecision(4));
  };
  const show = (v, unit) => {
    if (v === null || v === undefined) return "-";
    if (unit === "percent") return +(100 * v).toPrecision(3) + "%";
    if (unit === "bytes") return short(v).replace(/([kMGT]?)$/, " $1B");
    return short(v) + (unit === "seconds" ? " s" : "");
  };

  // Ticks at 1, 2 or 5 times a power of ten; on a logarithmic axis at powers of ten while they fit.
  const ticks = (low, high, log, wanted) => {
    if (log) {
      const found = [];
      for (const steps of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]]) {
        found.length = 0;
        for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p++)
          for (const s of steps) {
            const v = s * 10 ** p;
            if (v >= low * 0.999 && v <= high * 1.001) found.push(v);
          }
        if (found.length >= 3) break;
      }
      if (found.length >= 2) return found.filter((_, i) => i % Math.ceil(found.length / wanted) === 0);
    }
    const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((s) => s * power >= rough) * power;
    const found = [];
    for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step)
      found.push(Math.abs(v) < step * 1e-9 ? 0 : v);
    return found;
  };
  const scale = (low, high, from, to, log) => {
    const f = log ? Math.log : (v) => v, a = f(low), span = f(high) - a || 1;
    return (v) => from + ((f(v) - a) / span) * (to - from);
  };

  // A centered mean that narrows towards both ends: no lag, and the ends are the true ones.
  const smoothed = (ys) => {
    const wide = Math.max(2, Math.round(ys.length / 60));
    return ys.map((y, i) => {
      if (y === null) return null;
      const reach = Math.min(wide, i, ys.length - 1 - i);
      const near = ys.slice(i - reach, i + reach + 1).filter((v) => v !== null);
      return near.reduce((a, b) => a + b, 0) / near.length;
    });
  };

  // Paths break where a number is missing, and over gaps without rows.
  const crosses = (a, b) => data.gaps.some(([from, to]) => a <= from && b >= to);
  const path = (xs, ys, X, Y, breaks) => {
    let text = "", on = false, before = null;
    ys.forEach((y, i) => {
      if (y === null || !isFinite(Y(y))) { on = false; return; }
      if (on && breaks && crosses(before, xs[i])) on = false;
      text += (on ? "L" : "M") + X(xs[i]).toFixed(1) + " " + Y(y).toFixed(1);
      if (!on && (i + 1 === ys.length || ys[i + 1] === null)) text += "h0.01";
      on = true;
      before = xs[i];
    });
    return text;
  };
  const stacked = (series) => {
    const sums = series[0].x.map(() => 0);
    return series.map((s) => ({
      ...s, low: [...sums], high: s.y.map((y, i) => (sums[i] += y ?? 0)),
    }));
  };
  const area = (s, X, Y) => {
    const parts = [[]];
    s.x.forEach((x, i) => {
      if (i && crosses(s.x[i - 1], x)) parts.push([]);
      parts[parts.length - 1].push(i);
    });
    const at = (i, ys) => X(s.x[i]).toFixed(1) + " " + Y(ys[i]).toFixed(1);
    return parts.map((part) =>
      "M" + part.map((i) => at(i, s.high)).join("L") +
      "L" + part.reverse().map((i) => at(i, s.low)).join("L") + "Z").join("");
  };

  const steps = data.charts.flatMap((c) => c.series.flatMap((s) => s.x));
  const first = steps.reduce((a, b) => Math.min(a, b), Infinity);
  const last = steps.reduce((a, b) => Math.max(a, b), 1);

  const range = (chart, stack, log) => {
    const all = (stack ? stack.flatMap((s) => s.high) : chart.series.flatMap((s) => s.y))
      .filter((y) => y !== null && (!log || y > 0));
    let low = all.reduce((a, b) => Math.min(a, b), Infinity);
    let high = all.reduce((a, b) => Math.max(a, b), -Infinity);
    if (!log && (stack || chart.unit || low > 0 && low < 0.4 * high)) low = Math.min(0, low);
    if (low === high) [low, high] = low ? [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1] : [0, 1];
    return log ? [low / 1.05, high * 1.05] : [low, high + (high - low) * 0.05];
  };

  const draw = (chart) => {
    const box = node("section", { class: chart.wide ? "chart wide" : "chart" });
    box.append(node("h2", {}, chart.title));
    const legend = node("div", { class: "legend" });
    box.append(legend);
    place.append(box);
    const width = Math.max(240, box.clientWidth - 32), height = chart.wide ? 300 : 180;
    const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": chart.title });
    box.append(svg);
    const stack = chart.stack ? stacked(chart.series) : null;
    const log = state["log-y"] && !!chart.log && chart.series.some((s) => s.y.some((y) => y > 0));
    const [low, high] = range(chart, stack, log);
    const logX = state["log-x"], from = Math.max(logX ? 1 : 0, logX ? first : 0);
    const X = (v) => scale(from, Math.max(last, from + 1), left, width - right, logX)(Math.max(v, from));
    const Y = scale(low, high, height - bottom, top, log);
    for (const v of ticks(low, high, log, chart.wide ? 6 : 4)) {
      svg.append(node("line", { class: "grid", x1: left, x2: width - right, y1: Y(v), y2: Y(v) }));
      svg.append(node("text", { x: left - 8, y: Y(v) + 4, "text-anchor": "end" }, show(v, chart.unit)));
    }
    for (const v of ticks(from, Math.max(last, from + 1), logX, Math.min(8, width / 80)))
      svg.append(node("text", { x: X(v), y: height - 6, "text-anchor": "middle" }, short(v)));
    if (!stack) mark(svg, X, height);
    chart.series.forEach((s, i) => {
      if (stack) svg.append(node("path", { class: `area f${i % 4}`, d: area(stack[i], X, Y) }));
      else {
        const soft = state.smooth && chart.noisy && s.y.length > 40;
        const line = (ys, kind) =>
          svg.append(node("path", { class: `curve c${i % 4}${kind}`, d: path(s.x, ys, X, Y, s.x.length > 20) }));
        line(s.y, soft ? " raw" : "");
        if (soft) line(smoothed(s.y), "");
      }
    });
    if (stack) mark(svg, X, height);
    const cross = node("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" });
    svg.append(cross);
    svg.addEventListener("pointermove", (event) => {
      const at = ((event.clientX - svg.getBoundingClientRect().left) / svg.clientWidth) * width;
      const share = Math.min(1, Math.max(0, (at - left) / (width - left - right)));
      hover(logX ? from * (Math.max(last, from + 1) / from) ** share : from + share * (last - from));
    });
    svg.addEventListener("pointerleave", () => hover(null));
    return { chart, legend, cross, X };
  };

  const mark = (svg, X, height) => {
    const add = (name, attributes, says) => {
      const made = node(name, attributes);
      made.append(node("title", {}, says));
      svg.append(made);
    };
    for (const [a, b] of data.gaps)
      add("rect", { class: "mark-gap", x: X(a), y: top, width: X(b) - X(a), height: height - top - bottom },
        `no rows from step ${a} to ${b}`);
    for (const step of data.resumes)
      add("line", { class: "mark-resume", x1: X(step), x2: X(step), y1: top, y2: height - bottom },
        `resumed from step ${step}`);
    for (const [step, many] of data.skipped)
      add("circle", { class: "mark-skip", cx: X(step), cy: height - bottom, r: 3.5 },
        `${many} steps skipped by step ${step}: gradient not finite`);
    for (const step of data.lost)
      add("circle", { class: "mark-lost", cx: X(step), cy: top, r: 3.5 }, `not finite at step ${step}`);
  };

  const nearest = (xs, step) => {
    let a = 0, b = xs.length - 1;
    while (b - a > 1) {
      const middle = (a + b) >> 1;
      if (xs[middle] < step) a = middle; else b = middle;
    }
    return Math.abs(xs[a] - step) <= Math.abs(xs[b] - step) ? a : b;
  };
  const hover = (step) => {
    for (const { chart, legend, cross, X } of drawn) {
      legend.replaceChildren();
      chart.series.forEach((s, i) => {
        const at = step === null ? s.x.length - 1 : nearest(s.x, step);
        const item = node("span");
        item.append(node("i", { class: `f${i % 4}` }), s.name + " ", node("b", {}, show(s.y[at], chart.unit)));
        if (i + 1 === chart.series.length || s.x.length !== chart.series[i + 1].x.length)
          item.append(` at ${s.x[at].toLocaleString("en-US")}`);
        legend.append(item);
      });
      cross.setAttribute("visibility", step === null ? "hidden" : "visible");
      if (step !== null) {
        const x = X(chart.series[0].x[nearest(chart.series[0].x, step)]);
        cross.setAttribute("x1", x);
        cross.setAttribute("x2", x);
      }
    }
  };

  const render = () => {
    place.replaceChildren();
    drawn = data.charts.map(draw);
    hover(null);
  };
  // What is switched on stands in the address, as in report.html#log-x,smooth.
  const asked = location.hash.slice(1).split(",");
  for (const name of Object.keys(state)) {
    const button = document.getElementById(name);
    const set = (on) => {
      state[name] = on;
      button.setAttribute("aria-pressed", on);
    };
    set(asked.includes(name));
    button.addEventListener("click", () => {
      set(!state[name]);
      const on = Object.keys(state).filter((key) => state[key]);
      history.replaceState(null, "", "#" + on.join(","));
      render();
    });
  }
  let waiting = 0;
  window.addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(render);
  });
  render();
})();
