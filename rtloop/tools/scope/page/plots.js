// Plots: panes of BokehJS that show frames.

import { Curves } from "./curves.js";

const LIGHT = ["#1f6fc4", "#d1510e", "#23863a", "#b8299a", "#7a4fd0", "#0a8f8f", "#a07800", "#c42a3d"];
const DARK = ["#6cb2ff", "#ff9a5c", "#63d07e", "#f07ad6", "#b798ff", "#4fd6d6", "#e3c04a", "#ff8090"];

export function colourOf(number) {
  const colours = document.documentElement.dataset.theme === "dark" ? DARK : LIGHT;
  return colours[number % colours.length];
}

export const isDashed = (number) => number % 16 >= 8;

export function format(value) {
  if (typeof value !== "number") return value ?? "";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
  return String(Number(value.toPrecision(5)));
}

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export class Plots {
  // place: the element; onTap(time, isShift); onZoom([begin, end]): the user has moved or zoomed the time axis.
  constructor(place, onTap, onZoom) {
    Object.assign(this, { place, onTap, onZoom, panes: [], key: "", mode: "time", isBox: false });
    this.isOwn = false; // a range changes because of a frame, not because of the user
    this.cursors = [null, null];
    this.armed = null; // {channel, level} of a trigger that waits
    this.shift = false;
    addEventListener("pointerdown", (event) => (this.shift = event.shiftKey), true);
  }

  // groups: [{title, channels: [{name, number, unit}]}]
  layout(mode, groups) {
    const key = JSON.stringify([mode, groups, document.documentElement.dataset.theme]);
    if (key === this.key) return;
    this.key = key;
    this.mode = mode;
    this.groups = groups;
    this.build();
  }

  get columns() {
    return Math.max(100, Math.round(this.place.clientWidth - 70));
  }

  clear() {
    this.curves?.remove();
    this.curves = null;
    this.host?.remove();
    this.host = null;
    this.panes = [];
    this.key = "";
  }

  build() {
    const key = this.key;
    this.clear();
    this.key = key;
    if (!this.groups.length) return;
    this.host = document.createElement("div");
    this.place.append(this.host);
    this.range = new Bokeh.Range1d({ start: 0, end: 1 });
    this.panes = this.groups.map((group, index) => this.pane(group, index === this.groups.length - 1));
    const figures = this.panes.map((one) => one.figure);
    const column = new Bokeh.Column({ children: figures, sizing_mode: "stretch_both", spacing: 2 });
    const curves = new Curves(this.host, this.panes);
    this.curves = curves;
    Bokeh.Plotting.show(column, this.host).then((view) => curves === this.curves && curves.connect(view));
  }

  pane(group, isLast) {
    const isTime = this.mode === "time";
    const text = style("--text");
    const soft = style("--soft");
    const yRange = new Bokeh.Range1d({ start: 0, end: 1 });
    const xRange = isTime ? this.range : new Bokeh.Range1d({ start: 0, end: 1 });
    const figure = Bokeh.Plotting.figure({
      x_range: xRange, y_range: yRange, sizing_mode: "stretch_both", min_height: 60, tools: [], toolbar_location: null,
      background_fill_color: style("--card"), border_fill_color: style("--card"), outline_line_color: style("--edge"),
      min_border_left: 62, min_border_right: 12, min_border_top: 4, min_border_bottom: 4, lod_threshold: null,
      output_backend: "canvas",
    });
    for (const axis of [figure.xaxis, figure.yaxis].flatMap((found) => [...found])) {
      Object.assign(axis, {
        axis_line_color: style("--edge"), major_tick_line_color: style("--edge"), minor_tick_line_color: null,
        major_label_text_color: soft, axis_label_text_color: text, axis_label_text_font_style: "normal",
        axis_label_text_font_size: "13px", major_label_text_font_size: "12px", axis_label_standoff: 4,
      });
    }
    for (const grid of [...figure.xgrid, ...figure.ygrid]) grid.grid_line_color = style("--grid");
    const [xAxis, yAxis] = [[...figure.xaxis][0], [...figure.yaxis][0]];
    yAxis.axis_label = group.title;
    yAxis.ticker.desired_num_ticks = 4;
    if (isTime && !isLast) xAxis.visible = false;
    if (isTime && isLast) xAxis.axis_label = group.xTitle ?? "time, s";
    if (!isTime) xAxis.axis_label = group.xTitle ?? "";
    const pan = new Bokeh.PanTool({ dimensions: isTime ? "width" : "both" });
    const wheel = new Bokeh.WheelZoomTool({ dimensions: isTime ? "width" : "both" });
    const box = new Bokeh.BoxZoomTool({});
    figure.add_tools(pan, wheel, box);
    figure.toolbar.active_scroll = wheel;
    figure.toolbar.active_drag = this.isBox ? box : pan;
    const lines = group.channels.map((channel) => {
      const colour = colourOf(channel.number);
      if (this.mode !== "histogram") {
        return { name: channel.name, x: [], y: [], colour, isDashed: isDashed(channel.number) };
      }
      const source = new Bokeh.ColumnDataSource({ data: { left: [], right: [], y: [] } });
      figure.quad({ left: { field: "left" }, right: { field: "right" }, top: { field: "y" }, bottom: 0, source,
        fill_color: colour, line_color: style("--card"), fill_alpha: 0.85 });
      return { name: channel.name, x: [], y: [], source };
    });
    const spans = ["#888888", "#888888"].map((_, which) => new Bokeh.Span({
      dimension: "height", location: null, visible: false, line_color: text, line_width: 1.2,
      line_dash: which ? "dashed" : "solid",
    }));
    const dotted = { location: 0, visible: false, line_color: style("--warn"), line_dash: "dotted" };
    const level = new Bokeh.Span({ dimension: "width", ...dotted });
    const edge = new Bokeh.Span({ dimension: "height", ...dotted });
    for (const one of [...spans, level, edge]) figure.add_layout(one);
    for (const kind of ["tap", "doubletap"]) {
      figure.on_event(kind, (event) => isTime && this.onTap(event.x, this.shift));
    }
    figure.on_event("rangesupdate", () => {
      if (this.isOwn) return;
      pane.isOwnY = yRange.start !== pane.start || yRange.end !== pane.end;
      this.curves?.paintSoon();
      if (isTime) this.onZoom([this.range.start, this.range.end]);
    });
    const pane = {
      figure, xRange, yRange, lines, spans, level, edge, pan, box, group, isOwnY: false, start: 0, end: 1,
    };
    return pane;
  }

  setBox(on) {
    this.isBox = on;
    for (const pane of this.panes) pane.figure.toolbar.active_drag = on ? pane.box : pane.pan;
  }

  fit() {
    for (const pane of this.panes) pane.isOwnY = false;
  }

  setCursors(cursors) {
    this.cursors = cursors;
    for (const pane of this.panes) {
      pane.spans.forEach((span, which) => {
        const time = cursors[which];
        if (time !== null) span.location = time;
        span.visible = time !== null && this.mode === "time";
      });
    }
  }

  draw(frame) {
    if (frame.mode !== this.mode || !this.panes.length) return;
    if (this.curves) Object.assign(this.curves, { marks: frame.marks ?? [], markColour: style("--text") });
    this.isOwn = true;
    try {
      if (this.mode === "time") this.drawTime(frame);
      else if (this.mode === "xy") this.drawXY(frame);
      else this.drawHistogram(frame);
    } finally {
      this.isOwn = false;
    }
    this.curves?.paintSoon();
  }

  drawTime(frame) {
    const found = new Map();
    let place = 0;
    for (const group of frame.groups) {
      const x = frame.arrays[place++];
      for (const name of group.channels) found.set(name, { x, y: frame.arrays[place++] });
    }
    this.range.setv({ start: frame.begin, end: frame.end });
    for (const pane of this.panes) {
      let [low, high] = [Infinity, -Infinity];
      for (const line of pane.lines) {
        Object.assign(line, found.get(line.name) ?? { x: [], y: [] });
        for (const value of line.y) {
          if (value < low) low = value;
          if (value > high) high = value;
        }
      }
      this.scale(pane, low, high);
      const trigger = frame.capture ?? this.armed;
      const isHere = trigger !== null && pane.lines.some((line) => line.name === trigger.channel);
      pane.edge.visible = frame.capture !== null;
      pane.level.visible = isHere;
      if (isHere) pane.level.location = trigger.level;
    }
  }

  // The range of values follows at once if they leave it, and shrinks only if they fill less than half of it.
  scale(pane, low, high) {
    if (pane.isOwnY || !(high >= low)) return;
    const room = 0.06 * (high - low) || 0.05 * Math.abs(high) || 0.5;
    const fills = (high - low) / (pane.end - pane.start);
    if (low < pane.start || high > pane.end || fills < 0.5 || pane.isNew !== false) {
      pane.isNew = false;
      [pane.start, pane.end] = [low - room, high + room];
      pane.yRange.setv({ start: pane.start, end: pane.end });
    }
  }

  drawXY(frame) {
    const group = frame.groups[0];
    const pane = this.panes[0];
    if (!group) return;
    const x = frame.arrays[0];
    let [low, high] = [Infinity, -Infinity];
    let [left, right] = [Infinity, -Infinity];
    for (const value of x) [left, right] = [Math.min(left, value), Math.max(right, value)];
    group.channels.slice(1).forEach((name, index) => {
      const y = frame.arrays[index + 1];
      const line = pane.lines.find((one) => one.name === name);
      if (line) Object.assign(line, { x, y });
      for (const value of y) [low, high] = [Math.min(low, value), Math.max(high, value)];
    });
    this.scale(pane, low, high);
    if (right >= left && !pane.isOwnY) {
      const room = 0.06 * (right - left) || 0.5;
      pane.xRange.setv({ start: left - room, end: right + room });
    }
  }

  drawHistogram(frame) {
    frame.groups.forEach((group, index) => {
      const pane = this.panes.find((one) => one.lines[0].name === group.channels[0]);
      if (!pane) return;
      const [edges, counts] = [frame.arrays[2 * index], frame.arrays[2 * index + 1]];
      pane.lines[0].source.data = { left: edges.slice(0, -1), right: edges.slice(1), y: counts };
      if (!pane.isOwnY) {
        [pane.start, pane.end] = [0, 1.05 * Math.max(...counts)];
        pane.yRange.setv({ start: pane.start, end: pane.end });
        pane.xRange.setv({ start: edges[0], end: edges[edges.length - 1] });
      }
    });
  }
}
