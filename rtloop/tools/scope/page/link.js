// Link to the server: the WebSocket, JSON messages both ways, and binary frames to draw.

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
        const begun = performance.now();
        this.onFrame(parseFrame(event.data));
        // The next frame is asked for once this one is on the screen, after a pause of half the time that this took,
        // so that a slow computer still has time for the user. A hidden page asks for none.
        requestAnimationFrame(() => setTimeout(() => {
          setTimeout(() => this.send("next"), Math.min(0.5 * (performance.now() - begun), 300));
        }));
      }
    };
    socket.onclose = () => {
      this.onState(false);
      setTimeout(() => this.open(), this.delay);
      this.delay = Math.min(2 * this.delay, 4000);
    };
    this.socket = socket;
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
