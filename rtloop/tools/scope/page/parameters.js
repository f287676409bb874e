// Parameters: sliders and fields, sent one by one or together, undo, and presets.

import { format } from "./plots.js";

const $ = (id) => document.getElementById(id);

export class ParameterPanel {
  constructor(link, notice) {
    Object.assign(this, { link, notice, rows: new Map(), values: {}, pending: new Map(), presets: {}, gesture: 0 });
    $("send").onclick = () => this.sendAll();
    $("discard").onclick = () => this.discard();
    $("undo").onclick = () => link.send("undo");
    $("at-once").onchange = () => $("at-once").checked && this.sendAll();
    $("preset-load").onclick = () => this.load($("preset").value);
    $("preset-save").onclick = () => this.save();
    $("preset-name").onkeydown = (event) => event.key === "Enter" && this.save();
    $("preset-delete").onclick = () => {
      const name = $("preset").value;
      if (name) link.send("preset", { action: "delete", name });
    };
  }

  show(parameters, loop) {
    this.rows.clear();
    this.pending.clear();
    this.isSending = false;
    this.sent = null;
    $("parameters").replaceChildren();
    if (!parameters.length) {
      const note = document.createElement("p");
      note.className = "note";
      note.textContent = loop
        ? `${loop} has no parameters. Declare one in its __init__: self.parameter("kp", &self.kp, 10.0).limits(0, 50)`
        : "No loop is chosen.";
      $("parameters").append(note);
    }
    for (const one of parameters) this.add(one);
    this.refresh();
  }

  add(one) {
    const isNumber = !one.shape.length && one.type !== "bool";
    const row = document.createElement("div");
    row.className = "parameter" + (one.shape.length ? " wide" : "");
    row.innerHTML = '<div class="top"><label class="name"></label><span class="input"></span>'
      + '<span class="unit"></span></div><p class="why" hidden></p>';
    const id = `parameter-${one.name}`;
    const name = row.querySelector(".name");
    name.textContent = one.name;
    name.htmlFor = id;
    row.querySelector(".unit").textContent = one.unit;
    const field = document.createElement("input");
    field.id = id;
    field.type = one.type === "bool" && !one.shape.length ? "checkbox" : "text";
    if (isNumber) field.inputMode = "decimal";
    field.autocomplete = "off";
    if (one.shape.length) row.append(field);
    else row.querySelector(".input").append(field);
    const entry = { one, row, field, slider: null, why: row.querySelector(".why") };
    field.onchange = () => this.edit(one.name, field.type === "checkbox" ? field.checked : field.value);
    field.onkeydown = (event) => {
      if (event.key === "Escape") {
        this.pending.delete(one.name);
        this.refresh();
        field.blur();
      }
    };
    if (isNumber && one.low !== null && one.high !== null && one.high > one.low) this.addSlider(entry);
    row.append(entry.why);
    this.rows.set(one.name, entry);
    $("parameters").append(row);
  }

  addSlider(entry) {
    const { one, row } = entry;
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: one.low, max: one.high, step: one.type === "int" ? 1 : "any" });
    slider.setAttribute("aria-label", `${one.name}, ${one.low} to ${one.high} ${one.unit}`);
    let gesture = null;
    slider.oninput = () => {
      gesture ??= `slider-${performance.now()}-${++this.gesture}`;
      const digits = Math.max(0, 3 - Math.floor(Math.log10(one.high - one.low)));
      const value = Number(slider.value);
      const rounded = one.type === "int" ? Math.round(value) : Number(value.toFixed(Math.min(digits, 12)));
      this.edit(one.name, Math.min(Math.max(rounded, one.low), one.high), gesture);
    };
    slider.onchange = () => (gesture = null);
    slider.onkeydown = (event) => {
      const fine = (one.high - one.low) / (event.shiftKey ? 1000 : 100);
      const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
      if (!step || one.type === "int") return;
      event.preventDefault();
      slider.value = Number(slider.value) + step * fine;
      slider.oninput();
    };
    const limits = document.createElement("div");
    limits.className = "limits";
    limits.innerHTML = "<span></span><span></span>";
    limits.children[0].textContent = format(one.low);
    limits.children[1].textContent = format(one.high);
    row.append(slider, limits);
    entry.slider = slider;
  }

  edit(name, value, gesture = null) {
    const entry = this.rows.get(name);
    entry.why.hidden = true;
    this.pending.set(name, { value, gesture });
    if (entry.slider && gesture === null) entry.slider.value = value;
    if (gesture !== null) entry.field.value = String(value);
    if ($("at-once").checked) this.sendSoon();
    this.refreshButtons();
  }

  // At most one message is on its way: a slider that is dragged sends the newest value when the last one has arrived.
  sendSoon() {
    if (!this.isSending) this.sendAll();
  }

  sendAll() {
    if (!this.pending.size) return;
    const values = {};
    let gesture = null;
    for (const [name, one] of this.pending) {
      values[name] = typeof one.value === "number" ? String(one.value) : one.value;
      gesture = this.pending.size === 1 ? one.gesture : null;
    }
    this.sent = new Map(this.pending);
    this.isSending = true;
    this.link.send("set", { values, gesture });
  }

  onSet(message) {
    this.isSending = false;
    if (message.undone) {
      this.notice(message.names.length ? `Undone: ${message.names.join(", ")}.` : "There is nothing to undo.");
    }
    for (const name of message.names) {
      if (this.sent?.get(name) === this.pending.get(name)) this.pending.delete(name);
      const entry = this.rows.get(name);
      if (entry) entry.why.hidden = true;
    }
    this.sent = null;
    if ($("at-once").checked) this.sendAll();
    this.refresh();
  }

  // Nothing of the set was changed. The values stay in their fields, with the reason, until they are corrected.
  onRefused(message) {
    this.isSending = false;
    const names = [...(this.sent?.keys() ?? [])];
    const guilty = names.find((name) => message.message.startsWith(`${name}=`)) ?? names[0];
    const entry = this.rows.get(guilty);
    if (entry) {
      entry.why.textContent = message.message;
      entry.why.hidden = false;
    } else {
      this.notice(message.message, true);
    }
    this.sent = null;
    this.refreshButtons();
  }

  discard() {
    this.pending.clear();
    for (const entry of this.rows.values()) entry.why.hidden = true;
    this.refresh();
  }

  onValues(message) {
    this.values = message.values;
    $("undo").disabled = !message.undo;
    this.refresh();
  }

  refresh() {
    for (const [name, entry] of this.rows) {
      if (this.pending.has(name) || document.activeElement === entry.field || !(name in this.values)) continue;
      const value = this.values[name];
      if (entry.field.type === "checkbox") entry.field.checked = value;
      else entry.field.value = Array.isArray(value) ? JSON.stringify(value) : String(value);
      if (entry.slider && document.activeElement !== entry.slider) entry.slider.value = value;
    }
    this.refreshButtons();
  }

  refreshButtons() {
    const count = this.pending.size;
    $("send").disabled = $("discard").disabled = !count;
    $("send").textContent = count > 1 ? `Send ${count} changes together` : "Send";
    for (const [name, entry] of this.rows) entry.row.classList.toggle("pending", this.pending.has(name));
  }

  onPresets(presets) {
    this.presets = presets;
    const names = Object.keys(presets);
    const options = (names.length ? names : [""]).map((name) => new Option(name || "none saved yet", name));
    $("preset").replaceChildren(...options);
    $("preset").disabled = $("preset-load").disabled = $("preset-delete").disabled = !names.length;
  }

  // Only what differs is set; names that the loop does not have are told.
  load(name) {
    const values = this.presets[name] ?? {};
    const unknown = Object.keys(values).filter((key) => !this.rows.has(key));
    for (const [key, value] of Object.entries(values)) {
      if (!this.rows.has(key) || JSON.stringify(value) === JSON.stringify(this.values[key])) continue;
      this.pending.set(key, { value, gesture: null });
      const { field, slider } = this.rows.get(key);
      if (field.type === "checkbox") field.checked = value;
      else field.value = Array.isArray(value) ? JSON.stringify(value) : String(value);
      if (slider) slider.value = value;
    }
    if (unknown.length) {
      this.notice(`${name} has values that this loop has no parameter for: ${unknown.join(", ")}.`, true);
    }
    if (!this.pending.size) this.notice(`The values are those of ${name} already.`);
    if ($("at-once").checked) this.sendSoon();
    this.refreshButtons();
  }

  save() {
    const name = $("preset-name").value.trim();
    if (!name) {
      $("preset-name").focus();
      return;
    }
    this.link.send("preset", { action: "save", name });
    $("preset-name").value = "";
    this.notice(`Saved as ${name}.`);
  }
}
