// The page: which loop and channels are shown, the bar, the keys, and what the server says.

import { Link } from "./link.js";
import { ParameterPanel } from "./parameters.js";
import { Plots, colourOf, format, isDashed } from "./plots.js";
import { TriggerPanel } from "./trigger.js";

const $ = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);
const MOST_AT_FIRST = 6;

const state = {
  isConnected: false, loops: [], note: "", loop: null, channels: [], chosen: new Map(), isPaused: false, span: null,
  recording: null, isStopping: false,
  isCapture: false, cursors: [null, null], found: [null, null], latest: {}, frames: 0, viewNumber: 0,
};

function notice(text, isBad = false) {
  const line = document.createElement("p");
  line.textContent = text;
  if (isBad) line.className = "bad";
  $("notices").append(line);
  while ($("notices").children.length > 4) $("notices").firstChild.remove();
  setTimeout(() => line.remove(), isBad ? 12000 : 5000);
}

// What the browser remembers.

const remembered = {
  get(key, otherwise) {
    try {
      return JSON.parse(localStorage.getItem(`rtloop-scope-${key}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(`rtloop-scope-${key}`, JSON.stringify(value));
    } catch {
      // The browser keeps nothing, as in a private window.
    }
  },
};

const dark = matchMedia("(prefers-color-scheme: dark)");
function applyTheme() {
  document.documentElement.dataset.theme = remembered.get("theme", dark.matches ? "dark" : "light");
  if (state.loop) {
    listChannels();
    layout();
  }
}
dark.onchange = applyTheme;
$("theme").onclick = () => {
  remembered.set("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  applyTheme();
};
applyTheme();

// Loops.

const keyOf = (loop) => `${loop.pid}:${loop.name}`;

function onLoops(message) {
  state.loops = message.loops;
  state.note = message.note;
  const label = (loop) => `${loop.name} · ${loop.rate} · ${loop.pid}`;
  const options = message.loops.map((loop) => new Option(label(loop), keyOf(loop)));
  const isListed = state.loop && message.loops.some((loop) => keyOf(loop) === keyOf(state.loop));
  if (state.loop && !isListed) options.unshift(new Option(`${state.loop.name} · ended`, keyOf(state.loop)));
  if (!options.length) options.push(new Option("none is running", ""));
  else if (!state.loop) options.unshift(new Option("choose a loop", ""));
  $("loop").replaceChildren(...options);
  if (state.loop) $("loop").value = keyOf(state.loop);
  if (!state.loop) chooseFirst();
  showEmpty();
}

function chooseFirst() {
  const [name, pid] = state.former ? [state.former.name, null] : [asked.get("loop"), asked.get("pid")];
  const isCalled = (loop) => !name || loop.name === name || loop.name === `${loop.group}/${name}`;
  const fits = (loop) => isCalled(loop) && (!pid || String(loop.pid) === pid);
  const found = state.loops.find((loop) => fits(loop) && loop.has_signals) ?? state.loops.find(fits);
  if (found) link.send("watch", { name: found.name, pid: found.pid });
}

$("loop").onchange = () => {
  const found = state.loops.find((loop) => keyOf(loop) === $("loop").value);
  if (found) link.send("watch", { name: found.name, pid: found.pid });
};

function onLoop(loop) {
  const isOther = !state.loop || state.loop.name !== loop.name;
  const isNext = !isOther && state.loop.pid !== loop.pid;
  if (isOther || isNext) state.recording = null;
  state.loop = loop;
  state.channels = loop.channels.map((one, number) => ({ ...one, number }));
  document.title = `${loop.name} · rtloop scope`;
  if (isOther) {
    const saved = remembered.get(`channels-${loop.name}`, null);
    const known = new Set(state.channels.map((one) => one.name));
    const isUseful = saved?.some((name) => known.has(name));
    const names = isUseful ? saved : state.channels.slice(0, MOST_AT_FIRST).map((one) => one.name);
    state.chosen = new Map(names.map((name) => [name, true]));
  }
  setPaused(false, false);
  setSource(false, false);
  setCursors([null, null]);
  state.span = null;
  if (isNext) notice(`${loop.name} runs again, in process ${loop.pid}.`);
  if (loop.problem) notice(loop.problem, true);
  const hasSignals = loop.channels.some((one) => one.feed === "signals");
  $("nosignals").hidden = hasSignals;
  $("nosignals").textContent = hasSignals ? "" : `${loop.name} has no signals, so only its own times are shown. `
    + 'Declare one in its __init__: self.signal("angle", &self.angle).unit("rad")';
  listChannels();
  parameters.show(loop.parameters, loop.name);
  trigger.show(loop.channels, loop.period);
  onLoops({ loops: state.loops, note: state.note });
  layout();
}

// Channels.

const chosen = () => state.channels.filter((one) => state.chosen.get(one.name));

function listChannels() {
  const filter = $("filter").value.toLowerCase();
  const rows = state.channels.filter((one) => one.name.toLowerCase().includes(filter)).map((one) => {
    const row = document.createElement("div");
    row.className = "channel";
    row.style.setProperty("--colour", colourOf(one.number));
    row.innerHTML = '<input type="checkbox">'
      + '<label><span class="swatch"></span><span class="name"></span><span class="unit"></span></label>'
      + '<span class="number a"></span><span class="number b"></span><span class="number d"></span>';
    const [box, label] = row.children;
    box.id = `channel-${one.name}`;
    box.checked = Boolean(state.chosen.get(one.name));
    box.onchange = () => {
      state.chosen.set(one.name, box.checked);
      remembered.set(`channels-${state.loop.name}`, chosen().map((found) => found.name));
      layout();
    };
    label.htmlFor = box.id;
    label.title = one.name;
    label.querySelector(".swatch").classList.toggle("dashed", isDashed(one.number));
    label.querySelector(".name").textContent = one.name;
    label.querySelector(".unit").textContent = one.unit;
    row.dataset.channel = one.name;
    return row;
  });
  $("channels").replaceChildren(...rows);
  showValues();
}

$("filter").oninput = listChannels;
$("none").onclick = () => {
  state.chosen.clear();
  remembered.set(`channels-${state.loop?.name}`, []);
  listChannels();
  layout();
};

// Writes a text only if it is another one: a browser lays out whatever is written.
function write(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

function showValues() {
  const [a, b] = state.found;
  for (const row of $("channels").children) {
    const name = row.dataset.channel;
    const [first, second, third] = row.querySelectorAll(".number");
    write(first, a ? format(a.values[name]) : format(state.latest[name]));
    write(second, b ? format(b.values[name]) : "");
    const difference = a && b ? b.values[name] - a.values[name] : NaN;
    write(third, Number.isNaN(difference) ? "" : format(difference));
  }
  const [heading] = document.querySelectorAll(".cursorhead span:nth-child(3)");
  write(heading, a ? "A" : "now");
  $("panel-signals").classList.toggle("measuring", Boolean(a || b));
  let note = "Click into the plot to set cursor A, with Shift cursor B.";
  if (a) note = `A: ${a.time.toFixed(6)} s, cycle ${a.cycle}.`;
  if (b) note += ` B: ${b.time.toFixed(6)} s, cycle ${b.cycle}.`;
  if (a && b) {
    const apart = b.time - a.time;
    note += ` B − A: ${format(apart)} s${apart ? `, ${format(1 / Math.abs(apart))} Hz` : ""}.`;
  }
  write($("cursornote"), note);
}

// Cursors.

function setCursors(times, steps = [0, 0]) {
  state.cursors = times;
  plots.setCursors(times);
  if (times[0] === null && times[1] === null) {
    state.found = [null, null];
    showValues();
  } else {
    link.send("cursors", { times, steps });
  }
}

function onTap(time, isShift) {
  const which = isShift || $("cursor-b").getAttribute("aria-pressed") === "true" ? 1 : 0;
  $("cursor-b").setAttribute("aria-pressed", "false");
  if (!state.isCapture) setPaused(true);
  const times = [...state.cursors];
  times[which] = time;
  setCursors(times);
}

/** Moves a cursor to a sample beside it, which is further than a period away if releases were missed. */
function moveCursor(which, step) {
  if (state.cursors[which] === null) return;
  const steps = [0, 0];
  steps[which] = step;
  setCursors([...state.cursors], steps);
}

function onCursors(message) {
  state.found = [message.cursors[0] ?? null, message.cursors[1] ?? null];
  const times = state.found.map((one, which) => one?.time ?? state.cursors[which] ?? null);
  state.cursors = times;
  plots.setCursors(times);
  showValues();
}

$("cursor-b").onclick = () => {
  const isPressed = $("cursor-b").getAttribute("aria-pressed") === "true";
  $("cursor-b").setAttribute("aria-pressed", String(!isPressed));
};
$("cursor-off").onclick = () => setCursors([null, null]);

// The view.

function sendView() {
  if (!state.loop) return;
  const mode = $("mode").value;
  let names = chosen().map((one) => one.name);
  if (mode === "xy") names = names.slice(0, 9);
  state.viewNumber += 1;
  link.send("view", {
    mode, channels: names, window: Number($("window").value), span: state.span, columns: plots.columns,
    is_capture: state.isCapture, number: state.viewNumber,
  });
}

function layout() {
  if (!state.loop) {
    plots.clear();
    return;
  }
  const mode = $("mode").value;
  const channels = chosen();
  const titled = (one) => (one.unit ? `${one.name}, ${one.unit}` : one.name);
  let groups = [];
  if (mode === "xy") {
    const over = channels.slice(1, 9);
    if (over.length) groups = [{ title: over.map(titled).join("; "), xTitle: titled(channels[0]), channels: over }];
  } else if (mode === "histogram") {
    groups = channels.slice(0, 4).map((one) => ({ title: "samples", xTitle: titled(one), channels: [one] }));
  } else {
    const by = new Map();
    for (const one of channels) {
      const key = { unit: one.unit, each: one.name, one: "" }[$("panes").value];
      if (!by.has(key)) by.set(key, []);
      by.get(key).push(one);
    }
    groups = [...by.values()].map((list) => ({
      title: list.length === 1 ? titled(list[0]) : $("panes").value === "one" ? "" : list[0].unit,
      xTitle: state.isCapture ? "time from the edge, s" : "time, s",
      channels: list,
    }));
  }
  showLegend(groups);
  plots.layout(mode, groups);
  plots.setCursors(state.cursors);
  showEmpty();
  sendView();
}

// The names of the lines, where the axis does not tell.
function showLegend(groups) {
  const several = groups.filter((group) => group.channels.length > 1).flatMap((group) => group.channels);
  $("legend").replaceChildren(...several.map((one) => {
    const item = document.createElement("span");
    item.style.setProperty("--colour", colourOf(one.number));
    item.innerHTML = '<span class="swatch"></span>';
    item.firstChild.classList.toggle("dashed", isDashed(one.number));
    item.append(one.name);
    return item;
  }));
}

function showEmpty() {
  let text = "";
  if (!state.isConnected) {
    text = "Not connected. rtloop scope has ended, or the address is an old one.\n"
      + "Start it again and open the address that it prints.";
  } else if (!state.loops.length && !state.loop) {
    text = "No loop is running on this machine.\nStart one, for example with: rtloop demo\n"
      + `It appears here by itself. ${state.note}`;
  } else if (!state.loop && asked.get("loop")) {
    text = `${asked.get("loop")} is not running yet. It appears here when it starts; or choose another loop above.`;
  } else if (state.loop && !chosen().length) {
    text = "No signal is selected. Tick signals in the list.";
  } else if (state.loop && $("mode").value === "xy" && chosen().length < 2) {
    text = "XY needs two signals: the first one is on the x axis. Tick another one.";
  }
  $("empty").textContent = text;
  $("empty").hidden = !text;
}

let isDrawn = 0;
function onFrame(frame) {
  if (frame.view !== state.viewNumber) return; // of an older view
  plots.draw(frame);
  state.frames += 1;
  document.documentElement.dataset.frames = state.frames;
  document.documentElement.dataset.newest = frame.newest;
  document.documentElement.dataset.marks = frame.marks?.length ?? 0;
  const now = performance.now();
  if (now - isDrawn < 200) return;
  isDrawn = now;
  const most = Math.max(1, ...frame.groups.map((group) => group.samples));
  let note = "";
  if (frame.mode === "time" && most > 1) note = `Each point pair is the minimum and maximum of ${most} samples.`;
  if (frame.mode === "xy" && most > 1) note = `One of ${most} samples is drawn; shorten the window to see all.`;
  if (frame.mode === "histogram") {
    const describe = (group) => `${group.channels[0]}: mean ${format(group.mean)}, `
      + `standard deviation ${format(group.deviation)}, ${format(group.low)} to ${format(group.high)}, `
      + `${group.samples} samples.`;
    note = frame.groups.slice(0, 4).map(describe).join(" ");
    if (frame.groups.length > 4) note += " The first four chosen signals are shown.";
  }
  write($("note"), note);
}

function setPaused(on, isTold = true) {
  if (state.isPaused !== on) {
    state.isPaused = on;
    if (isTold) link.send("pause", { on });
  }
  if (!on) {
    state.span = null;
    plots.fit();
  }
  $("pause").textContent = on ? "Go on" : "Pause";
  $("pause").setAttribute("aria-pressed", String(on));
}

$("pause").onclick = () => togglePause();
function togglePause() {
  if (state.isCapture) setSource(false);
  const on = !state.isPaused;
  setPaused(on);
  if (!on) setCursors([null, null]);
  sendView();
}

function setSource(isCapture, isTold = true) {
  if (state.isCapture === isCapture) return;
  state.isCapture = isCapture;
  state.span = null;
  $("live").setAttribute("aria-pressed", String(!isCapture));
  $("captured").setAttribute("aria-pressed", String(isCapture));
  plots.fit();
  setCursors([null, null]);
  if (isTold) layout();
}
$("live").onclick = () => setSource(false);
$("captured").onclick = () => setSource(true);

let zoomTimer = 0;
function onZoom(span) {
  if (!state.isCapture) setPaused(true);
  state.span = span;
  clearTimeout(zoomTimer);
  zoomTimer = setTimeout(sendView, 40);
}

$("fit").onclick = () => fit();
function fit() {
  state.span = null;
  plots.fit();
  sendView();
}

$("box").onclick = () => toggleBox();
function toggleBox() {
  const on = $("box").getAttribute("aria-pressed") !== "true";
  $("box").setAttribute("aria-pressed", String(on));
  plots.setBox(on);
}

$("window").onchange = () => {
  state.span = null;
  plots.fit();
  sendView();
};
$("mode").onchange = $("panes").onchange = () => {
  state.span = null;
  layout();
};
let sizeTimer = 0;
addEventListener("resize", () => {
  clearTimeout(sizeTimer);
  sizeTimer = setTimeout(sendView, 150);
});

// Panels, the figures of the loop, recording.

for (const tab of document.querySelectorAll("nav button")) tab.onclick = () => showPanel(tab.dataset.panel);
function showPanel(name) {
  for (const tab of document.querySelectorAll("nav button")) {
    tab.setAttribute("aria-selected", String(tab.dataset.panel === name));
    $(`panel-${tab.dataset.panel}`).hidden = tab.dataset.panel !== name;
  }
}

function onStatus(message) {
  state.latest = message.latest;
  const hasStopped = state.recording && !message.recording && !state.isStopping;
  if (hasStopped) notice(`The recording to ${state.recording} has ended.`);
  state.recording = message.recording;
  state.isStopping = state.isStopping && Boolean(message.recording);
  const isRunning = message.state === "running";
  const words = { running: state.loop?.rate ?? "", stopped: "has ended", failed: "has failed", died: "was killed" };
  const ended = words[message.state] ?? message.state;
  write($("state"), isRunning ? `running at ${words.running}` : `${ended}; waits for its next run`);
  $("state").className = `chip ${isRunning ? "good" : "bad"}`;
  $("recording").hidden = !message.recording;
  write($("record"), message.recording ? "Stop recording" : "Record");
  write($("recordnote"), message.recording ? `Recording to ${message.recording}` : "");
  if (!state.found[0]) showValues();
  showFigures(message);
}

function showFigures(message) {
  const rows = [];
  const figures = message.figures;
  const count = (value) => value.toLocaleString("en");
  if (figures) {
    rows.push(["process", state.loop.pid], ["cycles", count(figures.cycles)]);
    rows.push(["overruns", count(figures.overruns), figures.overruns > 0]);
    rows.push(["missed releases", count(figures.missed), figures.missed > 0]);
    if (message.swaps) {
      const { count: many, name, cycle } = message.swaps;
      rows.push(["swaps of the step", `${count(many)}, ${name} since cycle ${count(cycle)}`]);
    }
    for (const [name, one] of [["latency", figures.latency], ["execution", figures.execution]]) {
      if (!one) continue;
      for (const [what, value] of [["median", one.p50], ["99 %", one.p99], ["longest", one.max]]) {
        rows.push([`${name}, ${what}`, `${format(value)} µs`]);
      }
    }
  }
  rows.push(["samples lost by this page", count(message.lost), message.lost > 0]);
  const table = $("figures");
  while (table.rows.length > rows.length) table.deleteRow(-1);
  while (table.rows.length < rows.length) table.insertRow().innerHTML = "<th scope=row></th><td></td>";
  rows.forEach(([head, value, isBad], index) => {
    const [first, second] = table.rows[index].cells;
    write(first, head);
    write(second, value);
    second.className = isBad ? "bad" : "";
  });
}

$("show-timing").onclick = () => {
  for (const one of state.channels) if (one.feed === "timing") state.chosen.set(one.name, true);
  remembered.set(`channels-${state.loop?.name}`, chosen().map((one) => one.name));
  listChannels();
  layout();
};
$("record").onclick = () => {
  state.isStopping = Boolean(state.recording);
  link.send("record", { on: !state.recording, format: $("format").value });
};

// Keys.

$("help").onclick = () => $("keys").showModal();
addEventListener("keydown", (event) => {
  const isTyping = event.target.matches?.("input:not([type=checkbox]), select, textarea") || $("keys").open;
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const steps = (by) => {
    const list = $("window");
    list.selectedIndex = Math.max(0, Math.min(list.options.length - 1, list.selectedIndex + by));
    list.onchange();
  };
  const isButton = event.target.matches?.("button");
  const keys = {
    " ": () => !isButton && togglePause(), "+": () => steps(-1), "-": () => steps(1), f: fit, z: toggleBox,
    t: () => trigger.arm(), r: () => $("record").click(),
    c: () => !$("captured").disabled && setSource(!state.isCapture),
    u: () => $("undo").click(), "?": () => $("keys").showModal(),
    ArrowLeft: () => moveCursor(event.shiftKey ? 1 : 0, -1), ArrowRight: () => moveCursor(event.shiftKey ? 1 : 0, 1),
    1: () => showPanel("signals"), 2: () => showPanel("parameters"),
    3: () => showPanel("trigger"), 4: () => showPanel("figures"),
  };
  const action = keys[event.key];
  if (action && !(event.key === " " && isButton)) {
    event.preventDefault();
    action();
  }
});

// The server.

function onMessage(message) {
  const actions = {
    loops: onLoops, loop: onLoop, status: onStatus, cursors: onCursors,
    trigger: (one) => trigger.onTrigger(one), values: (one) => parameters.onValues(one),
    set: (one) => parameters.onSet(one), presets: (one) => parameters.onPresets(one.presets),
    done: (one) => notice(one.message),
    refused: (one) => (one.of === "set" ? parameters.onRefused(one) : notice(one.message, true)),
  };
  actions[message.kind]?.(message);
}

function onState(isConnected) {
  state.isConnected = isConnected;
  $("state").textContent = isConnected ? "connected" : "not connected";
  $("state").className = isConnected ? "chip" : "chip bad";
  if (isConnected && state.loop) {
    // The server has begun anew, or this page was away: choose the loop again once the list has come.
    state.former = state.loop;
    state.loop = null;
    state.isPaused = state.isCapture = false;
  }
  showEmpty();
}

const plots = new Plots($("plots"), onTap, onZoom);
const link = new Link(onMessage, onFrame, onState);
const parameters = new ParameterPanel(link, notice);
const trigger = new TriggerPanel(link, (capture, isFirst) => {
  if (isFirst) setSource(true);
  else if (state.isCapture) sendView();
}, (armed) => (plots.armed = armed));
parameters.show([], "");
showEmpty();
