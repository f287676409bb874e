// Trigger: its settings, its state, and the capture.

const $ = (id) => document.getElementById(id);

const STATES = {
  off: "Not armed. Choose a signal and a level, then press Arm.",
  filling: "Armed; waits until there are enough samples before an edge.",
  armed: "Armed; waits for the edge.",
  triggered: "Triggered; collects the samples after the edge.",
};

export class TriggerPanel {
  constructor(link, onCapture, onArmed) {
    Object.assign(this, { link, onCapture, onArmed, last: null, state: "off", period: 0.001 });
    $("trigger").onsubmit = (event) => {
      event.preventDefault();
      this.arm();
    };
    $("disarm").onclick = () => link.send("disarm");
    for (const format of ["npz", "mcap"]) $(`save-${format}`).onclick = () => link.send("save", { format });
    for (const id of ["trigger-before", "trigger-after"]) $(id).oninput = () => this.describe();
  }

  show(channels, period) {
    this.period = period;
    const before = $("trigger-channel").value;
    const label = (one) => (one.unit ? `${one.name}, ${one.unit}` : one.name);
    $("trigger-channel").replaceChildren(...channels.map((one) => new Option(label(one), one.name)));
    if (channels.some((one) => one.name === before)) $("trigger-channel").value = before;
    this.describe();
  }

  describe() {
    for (const id of ["trigger-before", "trigger-after"]) {
      $(id).title = `${(Number($(id).value) * this.period).toPrecision(3)} s`;
    }
  }

  arm() {
    this.link.send("arm", {
      channel: $("trigger-channel").value, edge: $("trigger-edge").value,
      level: $("trigger-level").value.replace(",", "."), is_single: $("trigger-mode").value === "single",
      before: $("trigger-before").value, after: $("trigger-after").value,
    });
  }

  onTrigger(message) {
    this.state = message.state;
    const capture = message.capture;
    const isWaiting = message.channel !== null && message.state !== "done";
    this.onArmed(isWaiting ? { channel: message.channel, level: message.level } : null);
    let text = STATES[message.state] ?? "";
    if (message.found) text += ` ${message.found === 1 ? "One capture" : `${message.found} captures`} so far.`;
    if (message.state === "done") text = "Done: one capture. Press Arm for another.";
    if (capture) {
      text += ` The capture on show: ${capture.channel} at ${capture.level}, cycle ${capture.cycle}, `
        + `${capture.before} samples before and ${capture.after} after.`;
    }
    $("trigger-state").textContent = text;
    $("save-npz").disabled = $("save-mcap").disabled = !capture;
    $("captured").disabled = !capture;
    const key = capture && `${capture.trigger_release}`;
    if (key && key !== this.last) this.onCapture(capture, this.last === null || message.state === "done");
    this.last = key;
  }
}
