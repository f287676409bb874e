// Curves: the lines of all panes, on one canvas above Bokeh's.
//
// Bokeh draws axes, grids and cursors, and handles the pointer. Its own lines cost several times as much for a picture:
// it builds an index of all points, and strokes wider than a pixel are filled outlines if the browser has no GPU.

const WIDTH = 1; // CSS pixels

export class Curves {
  // host: the element that Bokeh's column fills; panes: {figure, xRange, yRange, lines: [{x, y, colour, isDashed}]}.
  constructor(host, panes) {
    // marks: [{time, name}], vertical lines in all panes.
    Object.assign(this, { host, panes, views: null, used: "", isDue: false, marks: [], markColour: "" });
    this.canvas = document.createElement("canvas");
    this.canvas.className = "curves";
    host.append(this.canvas);
    this.observer = new ResizeObserver(() => this.paintSoon());
    this.observer.observe(host);
  }

  // column: the view of Bokeh's column, whose children are those of the panes.
  connect(column) {
    this.views = column.child_views;
    this.paintSoon();
  }

  remove() {
    this.observer.disconnect();
    this.canvas.remove();
    this.views = null;
  }

  // The frames of the panes within the host, CSS pixels.
  boxes() {
    const origin = this.host.getBoundingClientRect();
    return this.views.map((view) => {
      const { left, top } = view.el.getBoundingClientRect();
      const { bbox } = view.frame;
      return [left - origin.left + bbox.left, top - origin.top + bbox.top, bbox.width, bbox.height];
    });
  }

  // Paints before the next picture of the browser, and after Bokeh, which has asked for the same before if it paints.
  paintSoon() {
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      if (this.views) this.paint();
    });
  }

  paint() {
    const boxes = this.boxes();
    this.used = String(boxes);
    const ratio = devicePixelRatio;
    const width = Math.round(this.host.clientWidth * ratio);
    const height = Math.round(this.host.clientHeight * ratio);
    const context = this.canvas.getContext("2d");
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    else context.clearRect(0, 0, width, height);
    this.panes.forEach((pane, index) => {
      const [left, top, across, down] = boxes[index].map((size) => size * ratio);
      context.save();
      context.beginPath();
      context.rect(left, top, across, down);
      context.clip();
      context.lineWidth = WIDTH * ratio;
      context.lineJoin = "round";
      const scaleX = across / (pane.xRange.end - pane.xRange.start);
      const scaleY = down / (pane.yRange.end - pane.yRange.start);
      for (const line of pane.lines) {
        context.strokeStyle = line.colour;
        context.setLineDash(line.isDashed ? [6 * ratio, 3 * ratio] : []);
        context.beginPath();
        trace(context, line, left - pane.xRange.start * scaleX, scaleX, top + pane.yRange.end * scaleY, -scaleY);
        context.stroke();
      }
      this.paintMarks(context, index === 0, left - pane.xRange.start * scaleX, scaleX, top, top + down);
      context.restore();
    });
    this.checkSoon();
  }

  // The names are in the first pane; one that would overlap its neighbour is left out.
  paintMarks(context, isFirst, left, scaleX, top, bottom) {
    const ratio = devicePixelRatio;
    context.strokeStyle = context.fillStyle = this.markColour;
    context.setLineDash([2 * ratio, 3 * ratio]);
    context.font = `${12 * ratio}px sans-serif`;
    let used = -Infinity;
    for (const { time, name } of this.marks) {
      const x = left + time * scaleX;
      context.beginPath();
      context.moveTo(x, top);
      context.lineTo(x, bottom);
      context.stroke();
      if (!isFirst || x < used) continue;
      context.fillText(name, x + 3 * ratio, bottom - 4 * ratio);
      used = x + context.measureText(name).width + 8 * ratio;
    }
  }

  // Bokeh paints later than the curves if it has painted a moment ago, and may then make room for longer numbers.
  checkSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.views && String(this.boxes()) !== this.used && this.paintSoon(), 100);
  }
}

// A value that is not finite is a gap.
function trace(context, { x, y }, left, scaleX, top, scaleY) {
  let isDown = false;
  for (let index = 0; index < x.length; index++) {
    const value = y[index];
    if (!Number.isFinite(value)) {
      isDown = false;
    } else if (isDown) {
      context.lineTo(left + x[index] * scaleX, top + value * scaleY);
    } else {
      context.moveTo(left + x[index] * scaleX, top + value * scaleY);
      isDown = true;
    }
  }
}
