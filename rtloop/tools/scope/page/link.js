// Link to the server: the WebSocket, JSON messages both ways, and binary frames to draw.

const LONG_MS = 50; // from here on, browsers call a task long

export class Link {
  constructor(onMessage, onFrame, onState) {
    this.onMessage = onMessage;
    this.onFrame = onFrame;
    this.onState = onState;
    this.delay = 250;
    this.open();
  }

  open() {
    const token = new URLSearchParams(location.search).get("token") ?? "";
    const socket = new WebSocket(`ws://${location.host}/socket?token=${encodeURIComponent(token)}`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.delay = 250;
      this.onState(true);
      this.send("next");
    };
    socket.onmessage = (event) => {
      if (typeof event.data === "string") {
        this.onMessage(JSON.parse(event.data));
      } else {
        this.draw(event.data);
      }
    };
    socket.onclose = () => {
      this.onState(false);
      setTimeout(() => this.open(), this.delay);
      this.delay = Math.min(2 * this.delay, 4000);
    };
    this.socket = socket;
  }

  // The next frame is asked for once this one is painted, while the browser puts it on the screen. A hidden page asks
  // for none, and a browser that needs more than LONG_MS for a frame pauses, so that it has time for the user.
  draw(data) {
    const begun = performance.now();
    this.onFrame(parseFrame(data));
    requestAnimationFrame(() => setTimeout(() => {
      const took = performance.now() - begun;
      if (took > LONG_MS) setTimeout(() => this.send("next"), Math.min(0.25 * took, 200));
      else this.send("next");
    }));
  }

  send(kind, content = {}) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ kind, ...content }));
  }
}

function parseFrame(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let place = 4 + length;
  header.arrays = header.lengths.map((count) => {
    const array = new Float64Array(buffer, place, count);
    place += 8 * count;
    return array;
  });
  return header;
}
