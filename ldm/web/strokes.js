// Gradio's canvas begins a stroke only where the pointer is pressed on the photo. Here a stroke that is pressed beside the
// photo begins where it enters it. PixiJS, which draws the canvas, hands its application to this hook.
(() => {
  const NEAR = 100; // pixels around the canvas within which a press may become a stroke
  const apps = []; // in any order, Gradio makes one to paint and one to crop, whose canvas lies unseen below the other
  let last = null; // where a stroke was before it entered the photo

  globalThis.__PIXI_APP_INIT__ = (created) => { apps.push(created); };

  /** The photo's edges in the window's pixels; null while there is none. */
  function photo() {
    const app = apps.findLast(({ renderer }) => renderer?.canvas.isConnected && renderer.canvas.closest(".pixi-target"));
    const canvas = app?.renderer.canvas, drawn = app?.stage?.children.find((child) => child.sortableChildren);
    if (!drawn) return null;
    const place = canvas.getBoundingClientRect(), bounds = drawn.getBounds(), scale = place.width / app.screen.width;
    const x0 = place.left + bounds.x * scale, y0 = place.top + bounds.y * scale;
    return { canvas, place, x0, y0, x1: x0 + bounds.width * scale, y1: y0 + bounds.height * scale };
  }

  /** The part of a line that lies on the photo, as [start, end] with one pixel to spare; null: none (Liang-Barsky). */
  function clip(from, to, { x0, y0, x1, y1 }) {
    const dx = to.x - from.x, dy = to.y - from.y;
    let enter = 0, leave = 1;
    for (const [step, room] of [[-dx, from.x - x0 - 1], [dx, x1 - 1 - from.x], [-dy, from.y - y0 - 1], [dy, y1 - 1 - from.y]]) {
      if (step === 0 && room < 0) return null;
      if (step < 0) enter = Math.max(enter, room / step);
      if (step > 0) leave = Math.min(leave, room / step);
    }
    const at = (t) => ({ x: from.x + t * dx, y: from.y + t * dy });
    return enter < leave ? [at(enter), at(leave)] : null;
  }

  function send(type, { x, y }, event, canvas) {
    const { pointerId, pointerType, isPrimary, buttons, pressure } = event;
    const pressed = type === "pointerdown" ? 0 : -1;
    canvas.dispatchEvent(new PointerEvent(type, {
      clientX: x, clientY: y, pointerId, pointerType, isPrimary, buttons, pressure, button: pressed,
      bubbles: true, cancelable: true, composed: true,
    }));
  }

  addEventListener("pointerdown", (event) => {
    if (!event.isTrusted) return;
    const found = photo(), { clientX: x, clientY: y } = event;
    const control = event.target.closest?.("button, input, textarea, select, a, label, [role=slider]");
    last = null;
    if (!found || event.button !== 0 || !event.isPrimary || control) return;
    const { place, x0, y0, x1, y1 } = found;
    const beside = x <= x0 || x >= x1 || y <= y0 || y >= y1;
    const near = x > place.left - NEAR && x < place.right + NEAR && y > place.top - NEAR && y < place.bottom + NEAR;
    if (beside && near) last = { x, y };
  }, true);

  addEventListener("mousedown", (event) => { if (last) event.preventDefault(); }, true); // selects no text

  addEventListener("pointermove", (event) => {
    if (!last || !event.isTrusted || !event.isPrimary) return;
    const found = photo(), now = { x: event.clientX, y: event.clientY };
    const part = found && event.buttons & 1 ? clip(last, now, found) : null;
    last = found && event.buttons & 1 && !part ? now : null;
    if (!part) return;
    send("pointermove", part[0], event, found.canvas);
    send("pointerdown", part[0], event, found.canvas);
    send("pointermove", part[1], event, found.canvas);
  });

  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => { last = null; }, true);
})();
