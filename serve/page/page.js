// The page: uploads, the camera and streams, by the same API that everybody has. No request leaves this service.
import { Chart, History, seconds } from "/page/chart.js";

const $ = (id) => document.getElementById(id);
let key = sessionStorage.getItem("unmask-key") ?? "";

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [k, v] of Object.entries(attributes)) {
    if (k === "class") node.className = v;
    else if (k.startsWith("on")) node.addEventListener(k.slice(2), v);
    else node.setAttribute(k, v);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

const headers = (extra = {}) => (key ? { Authorization: `Bearer ${key}`, ...extra } : extra);

async function call(method, path, body, extra = {}) {
  const answer = await fetch(path, { method, body, headers: headers(extra) });
  if (answer.status === 401) $("keyform").hidden = false;
  if (key || answer.status === 401) $("links").hidden = true; // a link cannot send a key
  if (answer.status === 204) return null;
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error?.message ?? `The service answered ${answer.status}.`);
  return said;
}

const post = (path, plain) => call("POST", path, JSON.stringify(plain), { "Content-Type": "application/json" });
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Server-sent events with a key, which EventSource cannot send; goes on where it was broken off.
async function follow(path, take, stop) {
  let last = null;
  while (!stop.signal.aborted) {
    try {
      const answer = await fetch(path, { headers: headers(last === null ? {} : { "Last-Event-ID": last }), signal: stop.signal });
      if (answer.status === 404) return;
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let text = ""; ; ) {
        const { value, done } = await reader.read();
        if (done) break;
        const parts = (text + value).split("\n\n");
        text = parts.pop();
        for (const part of parts) {
          const fields = Object.fromEntries(part.split("\n").filter((l) => l && l[0] !== ":").map((l) => [l.slice(0, l.indexOf(":")), l.slice(l.indexOf(":") + 2)]));
          if (fields.id) last = fields.id;
          if (fields.data && take(fields.event, JSON.parse(fields.data)) === "over") return;
        }
      }
    } catch (error) {
      if (stop.signal.aborted) return;
    }
    await wait(1000);
  }
}

const VERDICTS = { manipulated: "▲ Manipulated", authentic: "● Authentic", inconclusive: "◆ Inconclusive" };

function badge(verdict, text) {
  return make("span", { class: `badge ${verdict}` }, text ?? VERDICTS[verdict] ?? verdict);
}

function warnings(list) {
  return list?.length ? make("ul", { class: "warn" }, ...list.map((w) => make("li", {}, w))) : null;
}

function account(frames) {
  const dropped = Object.entries(frames.dropped).map(([why, n]) => `${n} ${why.replaceAll("_", " ")}`);
  return `${frames.scored} of ${frames.received} frames scored${dropped.length ? `; dropped: ${dropped.join(", ")}` : ""}`;
}

// --- a video ------------------------------------------------------------------------------------------------------

const shown = new Map();

function showAnalysis(analysis) {
  if (shown.has(analysis.id)) return;
  const bar = make("progress", { max: 1, value: analysis.progress, "aria-label": `Progress of ${analysis.input}` });
  const state = make("span", { class: "badge none" }, "Waiting");
  const body = make("div", {}, bar);
  const stop = new AbortController();
  const remove = make("button", { class: "quiet", type: "button", "aria-label": `Remove ${analysis.input}`, onclick: async () => {
    stop.abort();
    node.remove();
    await call("DELETE", `/v1/analyses/${analysis.id}`).catch(() => {});
  } }, "Remove");
  const node = make("article", { class: "item" }, make("div", { class: "head" }, make("h3", {}, analysis.input), state, remove), body);
  shown.set(analysis.id, node);
  $("analyses").prepend(node);
  const finish = (result) => {
    bar.remove();
    state.replaceWith(result.status === "scored" ? badge(result.verdict) : badge("none", result.status === "failed" ? "Not readable" : "No score"));
    body.replaceChildren(...resultOf(result));
  };
  if (analysis.result) return finish(analysis.result);
  follow(`/v1/analyses/${analysis.id}/events`, (kind, data) => {
    if (kind === "progress") {
      state.textContent = `Analysing, ${Math.round(data.done * 100)} %`;
      bar.value = data.done;
    }
    if (kind !== "result") return "";
    finish(data.result);
    return "over";
  }, stop);
}

function resultOf(result) {
  if (result.error) return [make("p", { class: "soft" }, result.error.message)];
  const facts = [
    make("span", {}, `Score ${result.score.toFixed(3)}`),
    make("span", {}, `${result.faces.length} ${result.faces.length === 1 ? "face" : "faces"}`),
    make("span", {}, account(result.frames)),
    make("span", {}, `${(result.timings_s.total ?? 0).toFixed(1)} s`),
  ];
  const chart = new Chart("Scores over the video");
  const end = Math.max(result.media?.duration_s ?? 0, ...result.faces.flatMap((f) => f.segments.map((s) => s.end_s)));
  const gaps = result.faces.length === 1 ? between(result.faces[0].segments) : [];
  const tracks = result.faces.map((f) => ({ id: f.track_id, runs: f.segments.map((s) => [s.start_s, s.end_s].map((t) => ({ t, y: s.score, spread: f.uncertainty }))) }));
  queueMicrotask(() => chart.draw({ tracks, gaps, from: 0, to: Math.max(end, 0.1), limit: result.threshold, band: null }));
  return [make("p", { class: "facts soft small num" }, ...facts), warnings(result.warnings), chart.node].filter(Boolean);
}

const between = (segments) => segments.slice(1).map((s, i) => ({ from: segments[i].end_s, to: s.start_s, reason: "the face is not seen" }));

async function analyse(send) {
  $("videosay").textContent = "";
  try {
    showAnalysis(await send());
  } catch (error) {
    $("videosay").textContent = error.message;
  }
}

const upload = (file) => analyse(() =>
  call("POST", `/v1/analyses?name=${encodeURIComponent(file.name)}`, file, { "Content-Type": "application/octet-stream" }));

$("file").addEventListener("change", (event) => {
  for (const file of event.target.files) upload(file);
  event.target.value = "";
});
$("urlform").addEventListener("submit", (event) => {
  event.preventDefault();
  analyse(() => post("/v1/analyses", { url: $("url").value.trim() }));
});
for (const kind of ["dragover", "dragleave", "drop"])
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") for (const file of event.dataTransfer.files) upload(file);
  });

// --- streams ------------------------------------------------------------------------------------------------------

const cards = new Map();

const rests = (stream) => stream.paused || ["ended", "failed"].includes(stream.state);

function card(stream) {
  const history = new History(60), chart = new Chart(`Scores of ${stream.name}, the last minute`), stop = new AbortController();
  const state = badge("none", stream.state), verdict = badge("none", "No score yet"), facts = make("p", { class: "facts soft small num" });
  const say = make("p", { class: "soft small" }), notes = make("div");
  const title = make("h3", {}, stream.name);
  const pause = make("button", { class: "quiet", type: "button", onclick: () => act(() => call("PATCH", `/v1/streams/${stream.id}`, JSON.stringify({ paused: !rests(known) }), { "Content-Type": "application/json" })) }, "Pause");
  const remove = make("button", { class: "quiet", type: "button", "aria-label": `Remove ${stream.name}`, onclick: () => act(() => call("DELETE", `/v1/streams/${stream.id}`)) }, "Remove");
  const node = make("article", { class: "item", "data-stream": stream.id }, make("div", { class: "head" }, title, state, verdict, pause, remove), say, facts, notes, chart.node);
  let known = stream, drawn = false;
  const draw = () => {
    drawn = false;
    chart.draw(history.data());
  };
  follow(`/v1/streams/${stream.id}/events?last=400`, (kind, event) => {
    history.take(event);
    if (kind === "score") {
      const fresh = badge(event.verdict, `${VERDICTS[event.verdict]} ${event.score.toFixed(2)}`);
      verdict.className = fresh.className;
      verdict.textContent = fresh.textContent;
      notes.replaceChildren(...[warnings(event.warnings)].filter(Boolean));
    }
    if (!drawn) {
      drawn = true;
      requestAnimationFrame(draw);
    }
    return "";
  }, stop);
  const update = (now) => {
    known = now;
    title.textContent = now.name;
    const retry = now.retry_in_s ? `, next try in ${seconds(now.retry_in_s)}` : "";
    state.className = `badge ${["live", "stalled", "reconnecting", "failed"].includes(now.state) ? now.state : "none"}`;
    state.textContent = now.state[0].toUpperCase() + now.state.slice(1) + retry;
    say.textContent = now.message ?? "";
    pause.textContent = rests(now) ? "Resume" : "Pause";
    pause.setAttribute("aria-label", `${pause.textContent} ${now.name}`);
    const size = now.media?.width ? `${now.media.width} × ${now.media.height}` : null;
    const again = Object.values(now.reconnects).reduce((a, b) => a + b, 0);
    facts.replaceChildren(...[now.url, size, account(now.frames), again ? `${again} ${again === 1 ? "attempt" : "attempts"} to reconnect` : null].filter(Boolean).map((t) => make("span", {}, t)));
  };
  update(stream);
  return { node, update, stop };
}

async function act(work) {
  $("streamsay").textContent = "";
  try {
    await work();
    await refresh();
  } catch (error) {
    $("streamsay").textContent = error.message;
  }
}

async function refresh() {
  const streams = await call("GET", "/v1/streams");
  const ids = new Set(streams.map((s) => s.id));
  for (const [id, known] of cards)
    if (!ids.has(id)) {
      known.stop.abort();
      known.node.remove();
      cards.delete(id);
    }
  for (const stream of streams) {
    if (!cards.has(stream.id)) {
      cards.set(stream.id, card(stream));
      $("streams").append(cards.get(stream.id).node);
    }
    cards.get(stream.id).update(stream);
  }
  $("nostreams").hidden = streams.length > 0;
}

$("streamform").addEventListener("submit", (event) => {
  event.preventDefault();
  act(async () => {
    await post("/v1/streams", { url: $("surl").value.trim(), name: $("sname").value.trim() || null, fps: Number($("sfps").value) || 5, model: $("smodel").value || "default" });
    $("surl").value = $("sname").value = "";
  });
});

// --- the camera ---------------------------------------------------------------------------------------------------

let camera = null;

function socketUrl(path) {
  return `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`;
}

const encoded = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text))).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");

async function startCamera() {
  const media = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, height: { ideal: 480 } } });
  const video = $("preview");
  video.srcObject = media;
  await video.play();
  const socket = new WebSocket(socketUrl("/v1/live"), key ? ["unmask.v1", `key.${encoded(key)}`] : ["unmask.v1"]);
  const history = new History(30), chart = new Chart("Scores of the camera, the last half minute");
  const verdict = badge("none", "Waiting for a face"), notes = make("div"), facts = make("p", { class: "facts soft small num" });
  $("livechart").replaceChildren(make("p", {}, verdict), facts, notes, chart.node);
  $("live").hidden = false;
  const canvas = document.createElement("canvas"), started = performance.now();
  let credits = 0, read = 0, timer = 0, scored = 0, busy = false;
  const send = () => {
    if (!credits || busy || socket.readyState !== WebSocket.OPEN || !video.videoWidth) return;
    busy = true;
    const scale = Math.min(1, 640 / video.videoWidth), pts = (performance.now() - started) / 1000;
    [canvas.width, canvas.height] = [video.videoWidth * scale, video.videoHeight * scale];
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(async (blob) => {
      busy = false;
      if (!blob || !credits || socket.readyState !== WebSocket.OPEN) return;
      const head = new DataView(new ArrayBuffer(12));
      head.setFloat64(0, pts);
      head.setUint32(8, read);
      credits -= 1;
      socket.send(new Blob([head.buffer, blob]));
    }, "image/jpeg", 0.9);
  };
  socket.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    if (event.number) read = event.number;
    credits += event.credits ?? 0;
    history.take(event);
    if (event.event === "error") $("camerasay").textContent = event.error.message;
    if (event.event === "dropped") verdict.textContent = event.reason === "no_face" ? "No face in sight" : event.reason.replaceAll("_", " ");
    if (event.event !== "score") return;
    scored += 1;
    const fresh = badge(event.verdict, `${VERDICTS[event.verdict]} ${event.score.toFixed(2)}`);
    verdict.className = fresh.className;
    verdict.textContent = fresh.textContent;
    facts.textContent = `${scored} pictures scored; the last after ${Math.round(event.latency_s * 1000)} ms`;
    notes.replaceChildren(...[warnings(event.warnings)].filter(Boolean));
    requestAnimationFrame(() => chart.draw(history.data()));
  };
  socket.onclose = () => stopCamera();
  timer = setInterval(send, 1000 / Number($("rate").value));
  return { media, socket, timer };
}

function stopCamera() {
  if (camera) {
    clearInterval(camera.timer);
    camera.socket.onclose = null;
    camera.socket.close();
    for (const track of camera.media.getTracks()) track.stop();
  }
  camera = null;
  $("camera").textContent = "Start the camera";
  $("camera").setAttribute("aria-pressed", "false");
}

$("camera").addEventListener("click", async () => {
  if (camera) return stopCamera();
  $("camerasay").textContent = "";
  $("camera").disabled = true;
  try {
    camera = await startCamera();
    $("camera").textContent = "Stop the camera";
    $("camera").setAttribute("aria-pressed", "true");
  } catch (error) {
    $("camerasay").textContent = `The camera cannot be used (${error.message}).`;
  }
  $("camera").disabled = false;
});

// --- the service --------------------------------------------------------------------------------------------------

$("keyform").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  sessionStorage.setItem("unmask-key", key);
  $("keyform").hidden = true;
  $("key").value = "";
  begin();
});

async function begin() {
  try {
    const [models, analyses] = [await call("GET", "/v1/models"), await call("GET", "/v1/analyses?limit=10")];
    $("smodel").replaceChildren(...models.map((m) => make("option", { value: m.name }, m.name === "default" ? `default (${m.model})` : m.name)));
    const raw = models.filter((m) => !m.trained).map((m) => m.model);
    $("untrained").hidden = !raw.length;
    $("untrained").textContent = raw.length ? `${[...new Set(raw)].join(", ")} was never trained: its scores say nothing.` : "";
    for (const analysis of analyses.reverse()) showAnalysis(analysis);
    const health = await call("GET", "/healthz");
    $("version").textContent = `Unmask ${health.version}.`;
    await refresh();
    $("service").textContent = "Connected";
    document.body.dataset.ready = "true";
  } catch (error) {
    $("service").textContent = error.message;
  }
}

async function watchService() {
  await begin();
  for (;;) {
    await wait(1500);
    if (document.hidden || !$("keyform").hidden) continue;
    try {
      if (document.body.dataset.ready) await refresh();
      else await begin();
      $("service").textContent = "Connected";
    } catch (error) {
      $("service").textContent = "The service does not answer; trying again.";
    }
  }
}

watchService();
