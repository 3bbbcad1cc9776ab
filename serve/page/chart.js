// A chart of scores over time, as SVG: each face a line with its band, gaps as gaps. Pointer or arrow keys read it.
const NS = "http://www.w3.org/2000/svg";
const LEFT = 34, RIGHT = 8, TOP = 8, BOTTOM = 24, HEIGHT = 180;

function add(parent, name, attributes, text) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

export function seconds(t) {
  const whole = Math.max(0, t), minutes = Math.floor(whole / 60);
  return minutes ? `${minutes}:${String(Math.floor(whole % 60)).padStart(2, "0")}` : `${whole.toFixed(whole < 10 ? 1 : 0)} s`;
}

// Colours stay with a face for as long as it is shown.
const hue = (track) => track.id % 5;

export class Chart {
  // `data`: {tracks: [{id, runs: [[{t, y, spread}]]}], gaps: [{from, to, reason}], from, to, limit, band}
  constructor(label) {
    this.node = document.createElement("div");
    this.node.className = "chart";
    this.node.tabIndex = 0;
    this.node.setAttribute("role", "group");
    this.node.setAttribute("aria-label", `${label}. Use the arrow keys to read it.`);
    this.svg = add(this.node, "svg", { "aria-hidden": "true" });
    this.readout = document.createElement("output");
    this.readout.className = "readout";
    this.node.append(this.readout);
    this.at = null;
    this.node.addEventListener("pointermove", (event) => this.pick(this.timeAt(event)));
    this.node.addEventListener("pointerleave", () => this.pick(null));
    this.node.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.data && this.draw(this.data)).observe(this.node);
  }

  points() {
    return this.data ? this.data.tracks.flatMap((k) => k.runs.flat().map((p) => ({ ...p, id: k.id }))).sort((a, b) => a.t - b.t) : [];
  }

  timeAt(event) {
    const box = this.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / Math.max(1, box.width - LEFT - RIGHT);
    return this.data ? this.data.from + share * (this.data.to - this.data.from) : null;
  }

  key(event) {
    const points = this.points();
    if (event.key === "Escape") return this.pick(null);
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || !points.length) return;
    event.preventDefault();
    const times = [...new Set(points.map((p) => p.t))];
    const now = this.at === null ? (steps[event.key] > 0 ? -1 : times.length) : times.findIndex((t) => t >= this.at - 1e-9);
    this.pick(times[Math.max(0, Math.min(times.length - 1, now + steps[event.key]))]);
  }

  pick(t) {
    const points = this.points();
    if (t === null || !points.length) {
      this.at = null;
      this.readout.textContent = this.hint ?? "";
    } else {
      const near = points.reduce((a, b) => (Math.abs(b.t - t) < Math.abs(a.t - t) ? b : a));
      this.at = near.t;
      const here = points.filter((p) => p.t === near.t);
      this.readout.textContent = `${seconds(near.t)}: ${here.map((p) => `face ${p.id} ${p.y.toFixed(2)} ± ${p.spread.toFixed(2)}`).join(", ")}`;
    }
    this.cursor();
  }

  cursor() {
    this.svg.querySelector(".cursor")?.remove();
    if (this.at === null || !this.data) return;
    const x = this.x(this.at);
    add(this.svg, "line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM });
  }

  x(t) {
    return LEFT + ((t - this.data.from) / Math.max(1e-6, this.data.to - this.data.from)) * (this.width - LEFT - RIGHT);
  }

  draw(data) {
    this.data = data;
    this.width = Math.max(160, this.node.clientWidth);
    const svg = this.svg, y = (v) => TOP + (1 - v) * (HEIGHT - TOP - BOTTOM), right = this.width - RIGHT;
    const x = (t) => this.x(Math.min(Math.max(t, data.from), data.to));
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    for (const v of [0, 0.5, 1]) {
      add(svg, "line", { class: v ? "gridline" : "axis", x1: LEFT, x2: right, y1: y(v), y2: y(v) });
      add(svg, "text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, v.toFixed(1));
    }
    add(svg, "text", { x: LEFT, y: HEIGHT - 6 }, seconds(data.from));
    add(svg, "text", { x: right, y: HEIGHT - 6, "text-anchor": "end" }, seconds(data.to));
    if (data.band && data.band[1] > data.band[0])
      add(svg, "rect", { class: "unsure", x: LEFT, width: right - LEFT, y: y(data.band[1]), height: y(data.band[0]) - y(data.band[1]) });
    if (data.limit !== null && data.limit !== undefined)
      add(svg, "line", { class: "limit", x1: LEFT, x2: right, y1: y(data.limit), y2: y(data.limit) });
    for (const gap of data.gaps) {
      if (gap.to < data.from || gap.from > data.to) continue;
      const box = add(svg, "rect", { class: "gap", x: x(gap.from), width: Math.max(2, x(gap.to) - x(gap.from)), y: TOP, height: HEIGHT - TOP - BOTTOM });
      add(box, "title", {}, `Gap: ${gap.reason}`);
    }
    for (const track of data.tracks) for (const run of track.runs) this.run(run, hue(track), x, y);
    this.cursor();
  }

  run(run, colour, x, y) {
    if (!run.length) return;
    const clip = (v) => Math.min(1, Math.max(0, v)), at = (p, v) => `${x(p.t).toFixed(1)},${y(clip(v)).toFixed(1)}`;
    if (run.length === 1) {
      add(this.svg, "circle", { class: `dot f${colour}`, cx: x(run[0].t), cy: y(run[0].y), r: 2.5 });
      return;
    }
    const upper = run.map((p) => at(p, p.y + p.spread)), lower = run.map((p) => at(p, p.y - p.spread)).reverse();
    add(this.svg, "polygon", { class: `band f${colour}`, points: [...upper, ...lower].join(" ") });
    add(this.svg, "polyline", { class: `line c${colour}`, points: run.map((p) => at(p, p.y)).join(" ") });
  }
}

// Collects the events of a stream into what a chart shows: the last `span` seconds.
export class History {
  constructor(span) {
    this.span = span;
    this.tracks = new Map();
    this.gaps = [];
    this.now = 0;
    this.limit = null;
    this.band = null;
  }

  take(event) {
    if (event.event === "start") [this.limit, this.band] = [event.threshold, event.band];
    if (event.event === "gap") {
      this.gaps.push({ from: event.start_s, to: event.end_s, reason: event.reason });
      this.now = Math.max(this.now, event.end_s);
    }
    if (event.event !== "score") return;
    this.now = Math.max(this.now, event.pts_s);
    for (const face of event.faces) {
      const runs = this.tracks.get(face.track_id) ?? [];
      if (!runs.length || face.after_gap) runs.push([]);
      runs.at(-1).push({ t: event.pts_s, y: face.window_score, spread: Math.min(face.uncertainty, 0.5) });
      this.tracks.set(face.track_id, runs);
    }
    const old = this.now - this.span;
    for (const [id, runs] of this.tracks) {
      const kept = runs.map((run) => run.filter((p) => p.t >= old)).filter((run) => run.length);
      if (kept.length) this.tracks.set(id, kept);
      else this.tracks.delete(id);
    }
    this.gaps = this.gaps.filter((gap) => gap.to >= old);
  }

  data() {
    const tracks = [...this.tracks].map(([id, runs]) => ({ id, runs }));
    const from = Math.max(0, this.now - this.span);
    return { tracks, gaps: this.gaps, from, to: Math.max(this.now, from + 10), limit: this.limit, band: this.band };
  }
}
